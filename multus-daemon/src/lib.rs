//! multus kept running: it serves the calls of multus-shim, keeps the node's CNI configuration, installs and
//! uninstalls itself.
//!
//! A call comes over the socket ([`socket`], [`server`]) in the peers' protocol ([`wire`]), waits for its turn
//! ([`calls`], [`sandboxes`]) and is worked on by the functions of the thin plugin, with delegates that are started as
//! the runtime would have ([`executor`]), outside of the daemon's memory ([`launcher`], [`starter`]), and can be ended
//! ([`cancel`]). What the API server tells by itself ([`watch`])
//! is not asked for ([`clients`]). It is reached as the
//! service account, or by a certificate of the node's own ([`enrolment`], [`certificate`], [`approver`]). What was left behind is done first: kept DELs ([`pending`]), delegates of a daemon
//! that was killed ([`orphans`]), sandboxes without a namespace ([`gc`]). [`delegate`] attaches to pods that run, [`follow`] does so when their
//! annotation changes ([`followed`]); what they have is told again where that was lost ([`repair`]).
//!
//! The runtime comes to call multus-shim because of a file ([`generate`]) that stands in front of the primary network's
//! ([`primary`]) and is kept there ([`manager`]), in the directory that the runtime reads ([`layout`]). [`install`], [`entrypoint`] and [`uninstall`] put multus on a node and
//! take it away, by the peers' names and flags ([`cli`]).

pub mod approver;
pub mod calls;
pub mod cancel;
pub mod certificate;
pub mod cli;
pub mod clients;
pub mod conf;
pub mod daemon;
pub mod delegate;
pub mod enrolment;
pub mod entrypoint;
pub mod error;
pub mod executor;
pub mod flags;
pub mod follow;
pub mod followed;
pub mod gc;
pub mod generate;
pub mod install;
pub mod kubeconfig;
pub mod launcher;
pub mod layout;
pub mod manager;
pub mod metrics;
pub mod on_record;
pub mod orphans;
pub mod pending;
pub mod primary;
pub mod probe;
pub mod repair;
pub mod sandboxes;
pub mod server;
pub mod socket;
pub mod starter;
pub mod uninstall;
pub mod watch;
pub mod wire;

pub use error::Error;
