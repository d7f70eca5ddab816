//! What can go wrong with a netlink request.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::netns;

/// A netlink operation that failed. Each variant says what was attempted on which object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the request.
    #[error("{operation}: {cause}{}", explanation(.message.as_ref()))]
    Kernel {
        /// What was attempted, on what: "setting MTU 9000 of eth0".
        operation: String,
        /// The error number, as an OS error.
        cause: io::Error,
        /// The kernel's or driver's own words (extended acknowledgement), when it gave any.
        message: Option<String>,
    },
    /// The kernel did not answer in time.
    #[error("{operation}: no answer from the kernel within {} s; is a driver stuck?", limit.as_secs())]
    Timeout {
        /// What was attempted, on what.
        operation: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The socket broke.
    #[error("{operation}: the netlink socket is closed")]
    Closed {
        /// What was attempted, on what.
        operation: String,
    },
    /// The kernel answered with something that lacks the expected part.
    #[error("{operation}: the kernel's answer has no {missing}")]
    Incomplete {
        /// What was attempted, on what.
        operation: String,
        /// The part that is missing.
        missing: String,
    },
    /// No netlink socket could be opened.
    #[error("opening a netlink socket: {cause}")]
    Socket {
        /// The cause.
        cause: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
}

impl Error {
    pub(super) fn kernel(operation: String, code: i32, message: Option<String>) -> Self {
        let cause = io::Error::from_raw_os_error(code.saturating_abs());
        Self::Kernel { operation, cause, message }
    }

    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { cause, .. } => cause.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// Whether the object does not exist: ENODEV, ENOENT, ESRCH, ENXIO or EADDRNOTAVAIL.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        use Errno::{EADDRNOTAVAIL, ENODEV, ENOENT, ENXIO, ESRCH};
        matches!(self.errno(), Some(ENODEV | ENOENT | ESRCH | ENXIO | EADDRNOTAVAIL))
    }

    /// Whether the object exists already: EEXIST.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// Whether driver or kernel have no such operation: EOPNOTSUPP, ENOSYS, EPROTONOSUPPORT.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPROTONOSUPPORT))
    }

    /// Whether the kernel takes the request for nonsense, as of a parameter that a device does not have: EINVAL.
    pub(super) fn is_invalid(&self) -> bool {
        self.errno() == Some(Errno::EINVAL)
    }

    /// Whether the device is busy, or refuses while it is up: EBUSY.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(Errno::EBUSY)
    }
}

fn explanation(message: Option<&String>) -> String {
    message.map(|text| format!("; the kernel says: {text}")).unwrap_or_default()
}
