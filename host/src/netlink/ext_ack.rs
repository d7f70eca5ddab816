//! Extended acknowledgements: the kernel's own words on a refused request.
//!
//! An NLMSG_ERROR payload is the error number, the header of the refused message, its body unless
//! NLM_F_CAPPED is set, and with NLM_F_ACK_TLVS attributes of which NLMSGERR_ATTR_MSG is a text
//! (`include/uapi/linux/netlink.h`).

use super::frame::{attribute, text, u32_at};

const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER_LENGTH: usize = 16;

/// The text in an error reply with these header `flags`; `rest` is the payload behind the error number.
pub(super) fn message(flags: u16, rest: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let skip = match flags & NLM_F_CAPPED {
        0 => usize::try_from(u32_at(rest, 0)?).ok()?.next_multiple_of(4),
        _ => HEADER_LENGTH,
    };
    Some(text(attribute(rest.get(skip..)?, NLMSGERR_ATTR_MSG)?)).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_text_behind_a_whole_or_a_capped_request() {
        let mut header = vec![0_u8; HEADER_LENGTH];
        header.splice(..4, 21_u32.to_ne_bytes());
        let attribute = [&10_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"no VF\0\0\0"].concat();
        let whole = [&header[..], &[0; 8], &attribute].concat();
        let capped = [&header[..], &attribute].concat();
        let no_vf = Some("no VF".to_owned());
        for (flags, payload, expected) in [
            (NLM_F_ACK_TLVS, &whole, no_vf.clone()),
            (NLM_F_ACK_TLVS | NLM_F_CAPPED, &capped, no_vf),
            (NLM_F_CAPPED, &capped, None),
            (NLM_F_ACK_TLVS, &header, None),
            (NLM_F_ACK_TLVS, &vec![0xff; 30], None),
            (NLM_F_ACK_TLVS, &vec![], None),
        ] {
            assert_eq!(message(flags, payload), expected, "flags {flags:#x}, {payload:?}");
        }
    }
}
