//! Which tenant a pod is, if it is one.

use cni::Object;

use crate::config::Conf;
use crate::error::Error;
use crate::kubernetes::{Claim, Kubernetes, PodMeta};
use crate::tenant::{Tenant, stateful_set};

/// The pod of a call as a tenant.
#[derive(Debug, Default)]
pub(crate) struct Tenancy {
    /// Whose the addresses are to be, unless they are the container's alone.
    pub(crate) tenant: Option<Tenant>,
    /// The claim, by namespace and name, when it is one.
    pub(crate) claim: Option<(String, String, Claim)>,
}

/// Whether [`ask`] may come to another answer than that the pod is no tenant.
pub(crate) fn is_possible(conf: &Conf) -> bool {
    let is_numbered = conf.pod.podref.split_once('/').is_some_and(|(_, name)| stateful_set(name).is_some());
    conf.claim.is_some() || conf.look_for_claim || conf.sticky && is_numbered
}

/// Asks the cluster what the pod is.
///
/// # Errors
/// [`Error::Api`]; [`Error::NoClaim`] and [`Error::OtherClaim`] when the pod refers to a claim that is of no use.
pub(crate) async fn ask(
    conf: &Conf,
    kubernetes: &Kubernetes,
    network: &str,
    ifname: &str,
) -> Result<Tenancy, Error> {
    let Some((namespace, name)) = conf.pod.podref.split_once('/') else { return Ok(Tenancy::default()) };
    let meta = if conf.claim.is_none() || conf.sticky {
        kubernetes.pod_meta(namespace, name).await?.unwrap_or_default()
    } else {
        PodMeta::default()
    };
    let named = meta.networks.as_deref().filter(|_| conf.look_for_claim);
    let reference = conf.claim.clone().or_else(|| claim_in(named?, ifname));
    let Some(reference) = reference else {
        let is_sticky = conf.sticky && meta.stateful_set.is_some();
        let pod = || Tenant::Pod { podref: conf.pod.podref.clone(), ifname: ifname.to_owned() };
        return Ok(Tenancy { tenant: is_sticky.then(pod), claim: None });
    };
    let full = format!("{namespace}/{reference}");
    let claim = kubernetes.claim(namespace, &reference).await?;
    let claim = claim.ok_or_else(|| Error::NoClaim { name: full.clone() })?;
    if claim.network != network {
        return Err(Error::OtherClaim { name: full, network: claim.network, wanted: network.to_owned() });
    }
    Ok(Tenancy {
        tenant: Some(Tenant::Claim { name: full }),
        claim: Some((namespace.to_owned(), reference, claim)),
    })
}

/// The claim to which the networks annotation refers for this interface. One without a name is `net` and its place.
fn claim_in(annotation: &str, ifname: &str) -> Option<String> {
    let elements: Vec<Object> = serde_json::from_str(annotation).ok()?;
    let text = |element: &Object, key| {
        element.decode::<String>(key).ok().flatten().filter(|text: &String| !text.is_empty())
    };
    let mut numbered = elements.iter().zip(1..);
    let (element, _) = numbered.find(|(element, number)| {
        let name = text(element, "interface").or_else(|| text(element, "interfaceRequest"));
        name.unwrap_or_else(|| format!("net{number}")) == ifname
    })?;
    text(element, "ipam-claim-reference")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_of_an_interface() {
        let annotation = r#"[{"name":"a"},{"name":"b","interface":"eth1","ipam-claim-reference":"c1"},
            {"name":"c","ipam-claim-reference":"c3"},{"name":"d","interfaceRequest":"x","ipam-claim-reference":""}]"#;
        for (ifname, wanted) in [
            ("net1", None),
            ("eth1", Some("c1")),
            ("net2", None),
            ("net3", Some("c3")),
            ("x", None),
            ("y", None),
        ] {
            assert_eq!(claim_in(annotation, ifname).as_deref(), wanted, "{ifname}");
        }
        for annotation in ["", "a,b", "{}", "[1]", r#"[{"ipam-claim-reference":7}]"#] {
            assert_eq!(claim_in(annotation, "net1"), None, "{annotation}");
        }
    }
}
