//! Waiting for several files at a time, without a runtime.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until one of `files` can be read, or is at its end; which of them can.
///
/// # Errors
/// When the kernel refuses.
pub fn readable(files: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        files.iter().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) => return Ok(polled.iter().map(|file| file.any().unwrap_or(true)).collect()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Write, pipe};
    use std::os::fd::AsFd;

    #[test]
    fn those_with_content_and_those_at_their_end() {
        let [(silent, _silent), (full, mut writer), (ended, gone)] = [(); 3].map(|()| pipe().unwrap());
        writer.write_all(b"x").unwrap();
        drop(gone);
        assert_eq!(readable(&[silent.as_fd(), full.as_fd(), ended.as_fd()]).unwrap(), [false, true, true]);
    }
}
