//! The node's own client certificate: what is asked for, and where it is kept.
//!
//! The files are those of the peers, which is client-go's layout: `multus-client-<time>.pem` has certificate and key,
//! and `multus-client-current.pem` is a symbolic link to the one in force.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use x509_parser::pem::Pem;

use crate::Error;

/// Common names are this and the node's name.
pub const COMMON_NAME: &str = "system:multus:";

/// The organization, which is the group of its user.
pub const ORGANIZATION: &str = "system:multus";

const CURRENT: &str = "multus-client-current.pem";
const PREFIX: &str = "multus-client-";

/// How many certificates stay besides the one in force: whoever is just reading them.
const KEPT: usize = 1;

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Validity {
    /// The validity of the first certificate in `pem`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(pem: &[u8]) -> Result<Self, String> {
        let is_certificate = |pem: &Pem| pem.label == "CERTIFICATE";
        let found = Pem::iter_from_buffer(pem).filter_map(Result::ok).find(is_certificate);
        let found = found.ok_or("it has no certificate in PEM form")?;
        let certificate = found.parse_x509().map_err(|e| format!("its certificate: {e}"))?;
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or("a time out of range")
        };
        let validity = certificate.validity();
        Ok(Validity { not_before: time(validity.not_before)?, not_after: time(validity.not_after)? })
    }

    /// Whether it is good at `now`.
    #[must_use]
    pub fn is_good(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// When it is to be renewed: after 70 to 90 percent of its life, each node of the cluster at a time of its own.
    #[must_use]
    pub fn renewal(&self, node: &str) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let spread = node.bytes().fold(17_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let percent = 70 + spread % 21;
        self.not_before + life / 100 * percent
    }
}

/// A new key, and the request for a certificate of it; both PEM.
#[derive(Debug)]
pub struct Request {
    /// The key.
    pub key: String,
    /// The request (PKCS #10).
    pub request: String,
}

impl Request {
    /// A request for the certificate of `node`.
    ///
    /// # Errors
    /// [`Error::Certificate`].
    pub fn of_node(node: &str) -> Result<Self, Error> {
        let failed = |e: rcgen::Error| Error::Certificate { message: format!("making a request: {e}") };
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, ORGANIZATION);
        name.push(DnType::CommonName, format!("{COMMON_NAME}{node}"));
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        let key = KeyPair::generate().map_err(failed)?;
        let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
        Ok(Request { key: key.serialize_pem(), request })
    }
}

/// A directory of certificates.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in `directory`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Store { directory: directory.into() }
    }

    /// Where certificate and key in force are.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.directory.join(CURRENT)
    }

    /// The validity of the certificate in force; `None` where there is none that can be used. One that cannot is not
    /// worth an error: another one is asked for.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        let pem = std::fs::read(self.current()).ok()?;
        match Validity::of(&pem) {
            Ok(validity) if pem.windows(11).any(|part| part == b"PRIVATE KEY") => Some(validity),
            Ok(_) => {
                tracing::warn!("{} has no key; a new certificate is asked for", self.current().display());
                None
            }
            Err(error) => {
                tracing::warn!("{}: {error}; a new certificate is asked for", self.current().display());
                None
            }
        }
    }

    /// Puts a certificate and its key in force, whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn put(&self, certificate: &str, key: &str) -> Result<Validity, Error> {
        let validity = Validity::of(certificate.as_bytes())
            .map_err(|e| Error::Certificate { message: format!("what the cluster issued: {e}") })?;
        host::durable::make_directory(&self.directory)?;
        let name = format!("{PREFIX}{}.pem", Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S.%f"));
        let both = format!("{}\n{}\n", certificate.trim_end(), key.trim_end());
        host::durable::write(&self.directory.join(&name), both.as_bytes())?;
        let draft = self.directory.join(".current");
        let linked = std::fs::remove_file(&draft)
            .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
            .and_then(|()| std::os::unix::fs::symlink(&name, &draft))
            .and_then(|()| std::fs::rename(&draft, self.current()));
        linked.map_err(|e| Error::file("putting in force", self.current(), e))?;
        self.forget_old();
        Ok(validity)
    }

    /// Removes every certificate with its key.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear(&self) -> Result<(), Error> {
        host::durable::remove(&self.current())?;
        for file in self.dated() {
            host::durable::remove(&file)?;
        }
        Ok(())
    }

    fn forget_old(&self) {
        for file in self.dated().iter().rev().skip(1 + KEPT) {
            let _ = std::fs::remove_file(file);
        }
    }

    /// The files, the oldest first.
    fn dated(&self) -> Vec<PathBuf> {
        let is_dated = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(PREFIX) && name != CURRENT
        };
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|p| is_dated(p)).collect();
        // Their names have the time.
        files.sort();
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(days: u8) -> (String, String) {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 1 + days);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn the_newest_is_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("certs"));
        assert_eq!(store.validity(), None);
        for days in [10, 20, 30] {
            let (certificate, key) = certificate(days);
            let put = store.put(&certificate, &key).unwrap();
            assert_eq!(store.validity(), Some(put));
        }
        let files: Vec<_> = std::fs::read_dir(directory.path().join("certs")).unwrap().collect();
        assert_eq!(files.len(), 3, "{files:?}");
        let text = std::fs::read_to_string(store.current()).unwrap();
        assert!(text.contains("BEGIN CERTIFICATE") && text.contains("BEGIN PRIVATE KEY"), "{text}");
        for broken in ["", "no certificate", &certificate(1).0] {
            std::fs::write(store.current(), broken).unwrap();
            assert_eq!(store.validity(), None, "{broken}");
        }
        assert!(store.put("garbage", "k").is_err());
        store.clear().unwrap();
        assert_eq!(std::fs::read_dir(directory.path().join("certs")).unwrap().count(), 0);
    }

    #[test]
    fn renewed_in_time_and_not_by_all_at_once() {
        let validity = Validity::of(certificate(10).0.as_bytes()).unwrap();
        let start = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let day = Duration::from_secs(86_400);
        let renewals: Vec<SystemTime> =
            (0..50).map(|index| validity.renewal(&format!("worker-{index}"))).collect();
        assert!(renewals.iter().all(|time| (start + day * 7..=start + day * 9).contains(time)));
        assert!(renewals.iter().collect::<std::collections::BTreeSet<_>>().len() > 5);
        assert!(validity.is_good(start + day * 9) && !validity.is_good(start + day * 10));
    }
}
