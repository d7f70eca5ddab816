//! What tells one life of a thing from the next: the machine's boot, a device's creation.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::{fs, io};

use crate::sysfs::PciDevice;

/// The kernel's random identity of this boot (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim_end().to_owned())
}

/// How long the machine has been running, suspension included (`/proc/uptime`).
///
/// # Errors
/// When `/proc` is not mounted.
pub fn uptime() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text.split_whitespace().next().and_then(|seconds| seconds.parse().ok());
    let uptime = seconds.and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    uptime.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/uptime holds no number"))
}

/// A number that a PCI function keeps for as long as the kernel has it, and that changes when it is
/// removed and made again, as VFs are when `sriov_numvfs` changes: the inode number of its directory
/// in sysfs, which kernfs gives out in turn and does not reuse at once.
///
/// # Errors
/// When the device is gone.
pub fn incarnation(device: &PciDevice) -> io::Result<u64> {
    fs::metadata(device.path()).map(|meta| meta.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_id_is_stable_and_not_empty() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
