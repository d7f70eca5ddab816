//! What tells one life of a thing from the next: the machine's boot, a device's creation.

use std::os::unix::fs::MetadataExt;
use std::{fs, io};

use crate::sysfs::PciDevice;

/// The kernel's random identity of this boot (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim_end().to_owned())
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
