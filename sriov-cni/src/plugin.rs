//! The plugin as the protocol sees it.

use cni::{CniResult, Plugin, Request};
use host::Sysfs;
use tracing::{Instrument, error};

use crate::error::Error;
use crate::log;
use crate::machine::Machine;
use crate::state::State;
use crate::{add, check, config, gc, release};

/// The `sriov` plugin on a machine with this sysfs and this state directory.
#[derive(Debug)]
pub struct Sriov {
    sysfs: Sysfs,
    state: State,
}

impl Sriov {
    /// A plugin; nothing is read or made yet.
    #[must_use]
    pub fn new(sysfs: Sysfs, state: State) -> Self {
        Self { sysfs, state }
    }

    /// Runs one call to its end, logging a failure once.
    fn run<T>(
        &self,
        request: &Request,
        work: impl AsyncFnOnce(&Machine) -> Result<T, Error>,
    ) -> Result<T, cni::Error> {
        let span = log::start(request);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| cni::Error::internal(format!("starting the runtime: {cause}")))?;
        let call = async {
            let result = match Machine::open(self.sysfs.clone()) {
                Ok(machine) => work(&machine).await,
                Err(error) => Err(error),
            };
            result.map_err(|failure| {
                let failure = cni::Error::from(failure);
                error!(code = failure.code, "{failure}");
                failure
            })
        };
        runtime.block_on(call.instrument(span))
    }
}

impl Plugin for Sriov {
    fn about(&self) -> String {
        format!(
            "podrail sriov {}: puts an SR-IOV virtual function into a container",
            env!("CARGO_PKG_VERSION")
        )
    }

    fn add(&self, request: &Request) -> Result<CniResult, cni::Error> {
        self.run(request, async |machine| add::add(machine, &self.state, request).await)
    }

    fn del(&self, request: &Request) -> Result<(), cni::Error> {
        self.run(request, async |machine| release::del(machine, &self.state, request).await)
    }

    fn check(&self, request: &Request) -> Result<(), cni::Error> {
        self.run(request, async |machine| check::check(machine, &self.state, request).await)
    }

    fn gc(&self, request: &Request) -> Result<(), cni::Error> {
        self.run(request, async |machine| gc::gc(machine, &self.state, request).await)
    }

    fn status(&self, request: &Request) -> Result<(), cni::Error> {
        self.run(request, async |machine| {
            self.state.probe()?;
            machine.netlink.links().await?;
            let devices = machine.sysfs.pci_devices();
            let unreadable =
                |error: host::sysfs::SysfsError| cni::Error::plugin_not_available(error.to_string());
            if devices.map_err(unreadable)?.is_empty() {
                return Err(cni::Error::plugin_not_available("this machine shows no PCI devices").into());
            }
            if let Some(kind) = config::ipam_of(&request.config) {
                cni::ipam::status(&kind, request)?;
            }
            Ok(())
        })
        // Whatever is the matter, to the runtime it means: no ADD now.
        .map_err(|error| match error.code {
            cni::Error::PLUGIN_NOT_AVAILABLE | cni::Error::LIMITED_CONNECTIVITY => error,
            _ => cni::Error { code: cni::Error::PLUGIN_NOT_AVAILABLE, ..error },
        })
    }
}
