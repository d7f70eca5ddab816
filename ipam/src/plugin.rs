//! `whereabouts` as the protocol sees it.

use cni::{CniResult, Plugin, Request};

use crate::config::{Conf, Places};
use crate::error::Error;
use crate::store::Store;
use crate::{attach, detach, log, probe};

/// The plugin on a node with these places.
#[derive(Debug, Default)]
pub struct Whereabouts {
    /// Where the node keeps things.
    pub places: Places,
}

impl Whereabouts {
    /// Runs one call to its end, logging a failure once.
    fn answer<T>(&self, request: &Request, work: impl FnOnce() -> Result<T, Error>) -> Result<T, cni::Error> {
        let (file, level) = Conf::logging(&request.config, &self.places);
        log::start(file.as_deref(), level.as_deref());
        work().map_err(|error| {
            let error = cni::Error::new(error.code(), error.to_string());
            tracing::error!(
                "{} {} {}: {error}",
                request.command.as_str(),
                request.container_id,
                request.ifname
            );
            error
        })
    }

    fn open(&self, request: &Request) -> Result<(Conf, Store), Error> {
        let conf = Conf::load(request, &self.places)?;
        let store = Store::open(&conf.node.data_dir, &conf.node.name)?;
        Ok((conf, store))
    }
}

/// Does what needs the API server. Most calls do not, and are done before this would have started.
pub(crate) fn online<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Start)?.block_on(work)
}

impl Plugin for Whereabouts {
    fn about(&self) -> String {
        format!(
            "podrail whereabouts {}: cluster-wide addresses that are never given twice",
            env!("CARGO_PKG_VERSION")
        )
    }

    fn add(&self, request: &Request) -> Result<CniResult, cni::Error> {
        self.answer(request, || {
            let (conf, store) = self.open(request)?;
            attach::add(&conf, &store, request)
        })
    }

    fn del(&self, request: &Request) -> Result<(), cni::Error> {
        self.answer(request, || detach::del(request, &self.places))
    }

    fn check(&self, request: &Request) -> Result<(), cni::Error> {
        self.answer(request, || {
            let (conf, store) = self.open(request)?;
            probe::check(&conf, &store, request)
        })
    }

    fn gc(&self, request: &Request) -> Result<(), cni::Error> {
        self.answer(request, || detach::gc(request, &self.places))
    }

    fn status(&self, request: &Request) -> Result<(), cni::Error> {
        let status = self.answer(request, || {
            let (conf, store) = self.open(request)?;
            probe::status(&conf, &store)
        });
        // Whatever is the matter, to the runtime it means: no ADD now.
        status.map_err(|error| cni::Error { code: cni::Error::PLUGIN_NOT_AVAILABLE, ..error })
    }
}
