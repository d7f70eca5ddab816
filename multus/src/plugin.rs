//! multus as a CNI plugin: from a call to its work and back.

use std::time::SystemTime;

use cni::{CniResult, Plugin, Request, Version};

use crate::config::Conf;
use crate::kubernetes::Kubernetes;
use crate::node::Node;
use crate::turn::Turn;
use crate::{Error, attach, check, detach, log};

/// The plugin.
#[derive(Debug)]
pub struct Multus {
    /// The node it runs on.
    pub node: Node,
}

impl Plugin for Multus {
    fn about(&self) -> String {
        format!(
            "meta-plugin that delegates to other CNI plugins; podrail multus v{}",
            env!("CARGO_PKG_VERSION")
        )
    }

    /// That of the configuration. One without a version gets the newest that every runtime knows and that has
    /// room for interfaces.
    fn result_version(&self, request: &Request) -> Version {
        match request.config.decode::<String>("cniVersion") {
            Ok(Some(text)) if !text.is_empty() => request.version,
            _ => Version::V0_4_0,
        }
    }

    fn add(&self, request: &Request) -> Result<CniResult, cni::Error> {
        answer(request, |conf| {
            let _turn = Turn::take(&conf.cni_dir, &request.container_id)?;
            block_on(attach::add(&self.node, conf, request))
        })
    }

    fn del(&self, request: &Request) -> Result<(), cni::Error> {
        answer(request, |conf| {
            let _turn = Turn::take(&conf.cni_dir, &request.container_id)?;
            detach::release_sandbox(&self.node, conf, request)
        })
    }

    fn check(&self, request: &Request) -> Result<(), cni::Error> {
        answer(request, |conf| check::check(conf, request))
    }

    fn gc(&self, request: &Request) -> Result<(), cni::Error> {
        let asked = SystemTime::now();
        answer(request, |conf| {
            block_on(async {
                // Networks that need none are collected all the same.
                let kubernetes = Kubernetes::connect_for_call(conf.kubeconfig.as_deref()).await;
                let kubernetes =
                    kubernetes.inspect_err(|error| tracing::warn!("GC: {error}")).unwrap_or_default();
                let turn = |container: &str| Turn::take_at_once(&conf.cni_dir, container);
                check::gc(&self.node, conf, kubernetes.as_ref(), request, asked, turn).await
            })
        })
    }

    fn status(&self, request: &Request) -> Result<(), cni::Error> {
        answer(request, |conf| block_on(check::status(conf))).map_err(|error| match error.code {
            // What STATUS may answer; a delegate's own code is passed on.
            50..=99 => error,
            _ => cni::Error { code: cni::Error::PLUGIN_NOT_AVAILABLE, ..error },
        })
    }
}

/// Runs `work` with the call's configuration and log.
fn answer<T>(request: &Request, work: impl FnOnce(&Conf) -> Result<T, Error>) -> Result<T, cni::Error> {
    let work = || {
        let conf = Conf::load(request)?;
        log::start(&conf.log);
        work(&conf)
    };
    work().map_err(|error| {
        let error = complaint(request, &error);
        tracing::error!("{}: {error}", request.command.as_str());
        error
    })
}

/// What the runtime is told of an error.
#[must_use]
pub fn complaint(request: &Request, error: &Error) -> cni::Error {
    cni::Error::new(error.code(), format!("{}{error}", prefix(request, error)))
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::Start)?;
    runtime.block_on(work)
}

/// Whose call it was, in upstream's form: `[namespace/pod/uid:network]: ` of a delegate's error, else
/// `Multus: [namespace/pod/uid]: `.
fn prefix(request: &Request, error: &Error) -> String {
    let get = |key| request.args.get(key).unwrap_or_default();
    let pod = format!("{}/{}/{}", get("K8S_POD_NAMESPACE"), get("K8S_POD_NAME"), get("K8S_POD_UID"));
    let cause = match error {
        Error::Undo { cause, .. } => cause,
        error => error,
    };
    match cause {
        Error::Delegate { label, .. } => format!("[{pod}:{label}]: "),
        _ if pod == "//" => "Multus: ".to_owned(),
        _ => format!("Multus: [{pod}]: "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::tests::request;

    #[test]
    fn errors_read_as_upstreams() {
        let delegate = || Error::Delegate {
            verb: "adding container to",
            network: "n".into(),
            label: "ns/a".into(),
            source: cni::Error::new(11, "busy"),
        };
        let text = |error: Error| {
            let error = answer::<()>(&request("{}"), |_| Err(error)).unwrap_err();
            (error.code, error.msg)
        };
        assert_eq!(
            text(delegate()),
            (11, "[ns/p/u:ns/a]: error adding container to network \"n\": busy".to_owned())
        );
        let undo = Error::Undo { cause: Box::new(delegate()), undo: Box::new(delegate()) };
        let (code, message) = text(undo);
        assert!(code == 11 && message.starts_with("[ns/p/u:ns/a]: error adding"), "{message}");
        let (code, message) = text(Error::NoSuchNad { namespace: "ns".into(), name: "b".into() });
        let start = "Multus: [ns/p/u]: cannot find a network-attachment-definition (b) in namespace (ns)";
        assert!(code == 7 && message.starts_with(start), "{message}");
    }

    #[test]
    fn the_result_has_room_for_interfaces() {
        let multus = Multus { node: Node::default() };
        assert_eq!(multus.result_version(&request(r#"{"cniVersion":"1.0.0"}"#)), Version::V1_0_0);
        for config in ["{}", r#"{"cniVersion":""}"#] {
            assert_eq!(multus.result_version(&request(config)), Version::V0_4_0);
        }
    }
}
