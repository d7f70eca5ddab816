//! One netlink message: its type and its bytes.

use std::convert::Infallible;

use netlink_packet_core::{
    Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};

/// A message as it stands on the wire, without the netlink header. Every message decodes to this, so
/// the protocol layer never drops a reply and a waiting request never hangs on one.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Frame {
    pub(super) fn new(kind: u16, message: &impl Emitable) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        Self { kind, body }
    }
}

impl NetlinkSerializable for Frame {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Frame {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// One attribute: its type without flags, its payload.
pub(super) type Attribute<'a> = (u16, &'a [u8]);

/// The attributes in `bytes`, up to the first malformed one.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let length = attribute.value_length();
        let kind = attribute.kind();
        Some((kind, attribute.into_inner().get(4..4 + length)?))
    })
}

/// The payload of the first attribute of type `kind`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A 32-bit number in host order at byte `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let (four, _) = bytes.get(offset..)?.split_first_chunk()?;
    Some(u32::from_ne_bytes(*four))
}

/// A 16-bit number in host order at byte `offset`.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let (two, _) = bytes.get(offset..)?.split_first_chunk()?;
    Some(u16::from_ne_bytes(*two))
}

/// A text that ends at the first NUL, or at the end.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, value) in attributes(&bytes) {
                let _ = (text(value), u32_at(value, 0), u16_at(value, 2), attribute(value, 1));
            }
        }
    }

    #[test]
    fn attributes_stop_at_the_malformed_one() {
        let bytes = [6, 0, 3, 0, b'x', 0, 0, 0, 200, 0, 4, 0];
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(3, &b"x\0"[..])]);
    }
}
