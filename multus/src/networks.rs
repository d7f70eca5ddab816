//! Which networks a sandbox gets, and in which order: the primary, the cluster's further ones, the pod's own.

use std::collections::BTreeMap;
use std::path::Path;

use cni::NetworkList;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::Error;
use crate::config::Conf;
use crate::kubernetes::{DEFAULT_NETWORK, Kubernetes, NETWORKS, Pod};
use crate::nad::{self, Nad, Network};
use crate::selection::{self, Selection};

/// A network to attach, and what the pod asks of it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The network.
    pub network: Network,
    /// What the pod asks of it; `None` for networks that the node's configuration names.
    pub selection: Option<Selection>,
}

impl From<Network> for Wanted {
    fn from(network: Network) -> Self {
        Wanted { network, selection: None }
    }
}

/// The networks of a sandbox, the primary first.
///
/// # Errors
/// When any of them cannot be resolved: a sandbox gets all its networks or none.
pub async fn resolve(
    conf: &Conf,
    kubernetes: Option<&Kubernetes>,
    pod: Option<&Pod>,
) -> Result<Vec<Wanted>, Error> {
    let cluster = Cluster { conf, kubernetes };
    let mut wanted: Vec<Wanted> = cluster.configured(pod).await?.into_iter().map(Wanted::from).collect();
    let auxiliary = cluster.auxiliary()?;
    if let (Some(kubernetes), Some(pod)) = (kubernetes, pod) {
        of_pod(conf, kubernetes, pod, &mut wanted).await?;
    }
    wanted.extend(auxiliary.map(Wanted::from));
    Ok(wanted)
}

/// Adds the networks that the pod names; the one it wants as its primary takes the first place.
async fn of_pod(
    conf: &Conf,
    kubernetes: &Kubernetes,
    pod: &Pod,
    wanted: &mut Vec<Wanted>,
) -> Result<(), Error> {
    let default = default_selection(conf, pod)?;
    let own = own_selections(conf, pod)?;
    let nads = read_nads(kubernetes, default.iter().chain(&own)).await?;
    let network = |selection: &Selection| -> Result<Network, Error> {
        let (namespace, name) = key(selection);
        let nad = nads
            .get(&(namespace, name))
            .ok_or_else(|| Error::NoSuchNad { namespace: namespace.to_owned(), name: name.to_owned() })?;
        Network::of(nad, &conf.conf_dir)
    };
    if let Some(selection) = &default {
        let primary = Wanted { network: network(selection)?, selection: Some(selection.clone()) };
        match wanted.first_mut() {
            Some(first) => *first = primary,
            None => wanted.push(primary),
        }
    }
    for selection in &own {
        wanted.push(Wanted { network: network(selection)?, selection: Some(selection.clone()) });
    }
    Ok(())
}

/// The networks that the node's configuration names for every pod, the primary first: what STATUS and GC are about
/// without a pod.
///
/// # Errors
/// When one cannot be resolved.
pub async fn of_node(conf: &Conf, kubernetes: Option<&Kubernetes>) -> Result<Vec<Network>, Error> {
    Cluster { conf, kubernetes }.configured(None).await
}

/// How many networks stand before those that a pod of `namespace` names, which get their `net<i>` by their place among
/// all. A configuration that names none at all is one that the primary is missing from.
#[must_use]
pub fn before_own(conf: &Conf, namespace: &str) -> usize {
    match (&conf.cluster_network, conf.delegates.len()) {
        (None, count @ 1..) => count,
        _ => 1 + default_networks(conf, Some(namespace)).len(),
    }
}

/// Pods of the system's namespaces get none.
fn default_networks<'a>(conf: &'a Conf, namespace: Option<&str>) -> &'a [String] {
    let is_system = namespace.is_some_and(|own| conf.system_namespaces.iter().any(|system| system == own));
    if is_system { &[] } else { &conf.default_networks }
}

/// The references of the node's configuration.
struct Cluster<'a> {
    conf: &'a Conf,
    kubernetes: Option<&'a Kubernetes>,
}

impl Cluster<'_> {
    async fn configured(&self, pod: Option<&Pod>) -> Result<Vec<Network>, Error> {
        let Some(reference) = &self.conf.cluster_network else { return self.inline() };
        let mut networks = vec![self.network(reference).await?];
        for reference in default_networks(self.conf, pod.map(|pod| pod.namespace.as_str())) {
            networks.push(self.network(reference).await?);
        }
        Ok(networks)
    }

    /// The node's own plugins for every sandbox: what lies in the chain's directory beside the primary's file, after
    /// a plugin that gives the first of them a result to start from. Files that cannot be understood cost no pod its
    /// networks.
    fn auxiliary(&self) -> Result<Option<Network>, Error> {
        let Some(name) = &self.conf.auxiliary_chain else { return Ok(None) };
        let failed = |e: cni::Error| Error::Conf(e.context("auxiliaryCNIChainName"));
        cni::names::check_network_name(name).map_err(failed)?;
        let reference = self.conf.cluster_network.as_deref().unwrap_or_default();
        let (directory, _) = reference.rsplit_once('/').ok_or_else(|| {
            failed(cni::Error::invalid_config(format!(
                "the plugins of {name:?} are looked for beside the file of the primary network, so \"clusterNetwork\" \
                 must be a path"
            )))
        })?;
        let plugins = match cni::load_plugins(&Path::new(&format!("{directory}/")).join(name)) {
            Ok(plugins) if plugins.is_empty() => return Ok(None),
            Ok(plugins) => plugins,
            Err(error) => {
                tracing::warn!("auxiliaryCNIChainName {name}: pods do not get it: {error}");
                return Ok(None);
            }
        };
        let start = || {
            let mut list = cni::Object::new();
            list.set("cniVersion", &self.conf.version)?;
            list.set("name", name)?;
            list.set("plugins", &[serde_json::json!({ "type": "passthru" })])?;
            NetworkList::from_object(list)
        };
        let mut list = start().map_err(failed)?;
        list.plugins.extend(plugins);
        Ok(Some(Network::local(list)))
    }

    fn inline(&self) -> Result<Vec<Network>, Error> {
        if self.conf.delegates.is_empty() {
            return Err(none_configured());
        }
        let read = |delegate: &str| {
            NetworkList::parse(delegate.as_bytes())
                .map(Network::local)
                .map_err(|e| Error::Conf(e.context("delegates")))
        };
        self.conf.delegates.iter().map(|delegate| read(delegate.get())).collect()
    }

    /// A reference is a path when it has a slash, else the name of a NAD, else of a file's network.
    async fn network(&self, reference: &str) -> Result<Network, Error> {
        let network = if reference.contains('/') {
            nad::load(Path::new(reference))
                .map(Network::local)
                .map_err(|source| Error::Network { network: reference.to_owned(), source })
        } else {
            self.named(reference).await
        };
        network.map_err(|source| Error::ClusterNetwork {
            reference: reference.to_owned(),
            namespace: self.conf.multus_namespace.clone(),
            source: Box::new(source),
        })
    }

    async fn named(&self, name: &str) -> Result<Network, Error> {
        let conf = self.conf;
        let from_nad = match self.kubernetes {
            None => Err(Error::NoKubernetes { network: name.to_owned() }),
            Some(kubernetes) => match kubernetes.nad(&conf.multus_namespace, name).await {
                Ok(Some(nad)) => Network::of(&nad, &conf.conf_dir),
                Ok(None) => {
                    Err(Error::NoSuchNad { namespace: conf.multus_namespace.clone(), name: name.to_owned() })
                }
                Err(error) => Err(error),
            },
        };
        // Without a usable NAD a file of the node does. When there is neither, both are told.
        from_nad.or_else(|error| {
            nad::find(&conf.conf_dir, name)
                .map(Network::local)
                .map_err(|source| Error::Network { network: name.to_owned(), source: source.context(error) })
        })
    }
}

fn none_configured() -> Error {
    Error::Conf(cni::Error::invalid_config(
        "at least one delegate/clusterNetwork must be specified: the multus configuration names no network",
    ))
}

fn default_selection(conf: &Conf, pod: &Pod) -> Result<Option<Selection>, Error> {
    let Some(annotation) = pod.annotations.get(DEFAULT_NETWORK) else { return Ok(None) };
    let mut selection = selection::parse_default(annotation)
        .map_err(|source| Error::Annotation { key: DEFAULT_NETWORK, source })?;
    let target = selection.namespace.get_or_insert_with(|| conf.multus_namespace.clone());
    // The cluster's own networks are there to be chosen from.
    if *target != conf.multus_namespace {
        isolate(conf, pod, target)?;
    }
    Ok(Some(selection))
}

fn own_selections(conf: &Conf, pod: &Pod) -> Result<Vec<Selection>, Error> {
    let annotation = pod.annotations.get(NETWORKS).map_or("", String::as_str);
    let mut selections =
        selection::parse(annotation).map_err(|source| Error::Annotation { key: NETWORKS, source })?;
    for selection in &mut selections {
        isolate(conf, pod, selection.namespace.get_or_insert_with(|| pod.namespace.clone()))?;
    }
    Ok(selections)
}

fn isolate(conf: &Conf, pod: &Pod, target: &str) -> Result<(), Error> {
    if conf.may_use(&pod.namespace, target) {
        return Ok(());
    }
    Err(Error::Isolation { pod: pod.namespace.clone(), target: target.to_owned() })
}

fn key(selection: &Selection) -> (&str, &str) {
    (selection.namespace.as_deref().unwrap_or_default(), &selection.name)
}

/// Each NAD once; those that do not exist are left out.
async fn read_nads<'a>(
    kubernetes: &Kubernetes,
    selections: impl Iterator<Item = &'a Selection>,
) -> Result<BTreeMap<(&'a str, &'a str), Nad>, Error> {
    let keys: std::collections::BTreeSet<_> = selections.map(key).collect();
    let read = |(namespace, name)| async move {
        Ok::<_, Error>(((namespace, name), kubernetes.nad(namespace, name).await?))
    };
    let found = stream::iter(keys).map(read).buffer_unordered(kubernetes.parallel());
    found.try_filter_map(async |(key, nad)| Ok(nad.map(|nad| (key, nad)))).try_collect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(json: &str) -> Conf {
        let request = crate::delegate::tests::request(json);
        Conf::load(&request).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn names(conf: &Conf) -> Result<Vec<String>, String> {
        let wanted = block_on(resolve(conf, None, None)).map_err(|e| e.to_string())?;
        Ok(wanted.into_iter().map(|w| w.network.label).collect())
    }

    #[test]
    fn inline_delegates_in_order() {
        let two = conf(
            r#"{"name":"m","delegates":[{"name":"a","type":"x"},{"name":"b","plugins":[{"type":"y"}]}]}"#,
        );
        assert_eq!(names(&two).unwrap(), ["a", "b"]);
        for (json, part) in [
            (r#"{"name":"m"}"#, "at least one delegate/clusterNetwork must be specified"),
            (r#"{"name":"m","delegates":[]}"#, "at least one delegate"),
            (r#"{"name":"m","delegates":[{"name":"a"}]}"#, "delegates: "),
        ] {
            let error = names(&conf(json)).unwrap_err();
            assert!(error.starts_with("failed to load netconf: ") && error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn cluster_networks_from_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("10.conf"), r#"{"name":"one","type":"x"}"#).unwrap();
        std::fs::write(path.join("20.conflist"), r#"{"name":"two","plugins":[{"type":"x"}]}"#).unwrap();
        let conf = |cluster: &str, more: &str| {
            let dir = path.display();
            conf(&format!(
                r#"{{"name":"m","confDir":"{dir}","clusterNetwork":"{cluster}","defaultNetworks":[{more}]}}"#
            ))
        };
        let in_dir = |name: &str| path.join(name).display().to_string();
        assert_eq!(names(&conf("one", r#""two""#)).unwrap(), ["one", "two"]);
        assert_eq!(names(&conf(&in_dir("20.conflist"), "")).unwrap(), ["two"]);
        assert_eq!(names(&conf(&in_dir(""), "")).unwrap(), ["one"]);
        let error = names(&conf("three", "")).unwrap_err();
        assert!(
            error.starts_with("failed to get clusterNetwork three in namespace kube-system: "),
            "{error}"
        );
        assert!(
            error.contains("kubeconfig") && error.contains("no network available in the name three"),
            "{error}"
        );
        let error = names(&conf("/no/such/file", "")).unwrap_err();
        assert!(error.contains("/no/such/file"), "{error}");
    }

    #[test]
    fn the_auxiliary_chain_comes_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join("aux")).unwrap();
        std::fs::write(path.join("10.conf"), r#"{"name":"one","type":"x"}"#).unwrap();
        let conf = |cluster: &str| {
            let members = r#""auxiliaryCNIChainName":"aux","cniVersion":"0.4.0""#;
            conf(&format!(r#"{{"name":"m","clusterNetwork":"{cluster}",{members}}}"#))
        };
        let beside = conf(&path.join("10.conf").display().to_string());
        assert_eq!(names(&beside).unwrap(), ["one"], "an empty chain is none");
        for (file, kind) in [("2.conf", "second"), ("1.conf", "first"), ("3.txt", "none")] {
            std::fs::write(path.join("aux").join(file), format!(r#"{{"type":"{kind}"}}"#)).unwrap();
        }
        let wanted = block_on(resolve(&beside, None, None)).unwrap();
        let Network { label, list, .. } = &wanted.last().unwrap().network;
        let kinds: Vec<&str> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
        assert_eq!(kinds, ["passthru", "first", "second"]);
        assert_eq!((label.as_str(), list.version), ("aux", cni::Version::V0_4_0));
        std::fs::write(path.join("aux/0.conf"), "{").unwrap();
        assert_eq!(names(&beside).unwrap(), ["one"], "a broken chain costs no pod its networks");
        let error = names(&conf("one")).unwrap_err();
        assert!(error.contains("clusterNetwork"), "{error}");
    }

    #[test]
    fn system_pods_get_no_default_networks() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("1.conf"), r#"{"name":"one","type":"x"}"#).unwrap();
        let dir = directory.path().display();
        let conf = conf(&format!(
            r#"{{"name":"m","confDir":"{dir}","clusterNetwork":"one","defaultNetworks":["one"]}}"#
        ));
        assert_eq!(block_on(of_node(&conf, None)).unwrap().len(), 2);
        for (namespace, count) in [("kube-system", 1), ("default", 2)] {
            let pod = Pod { namespace: namespace.into(), ..Pod::default() };
            assert_eq!(block_on(resolve(&conf, None, Some(&pod))).unwrap().len(), count);
            assert_eq!(before_own(&conf, namespace), count);
        }
    }

    #[test]
    fn a_pods_own_networks_come_after_those_of_the_node() {
        for (json, system, other) in [
            (r#"{"name":"m","delegates":[{"name":"a"},{"name":"b"}],"defaultNetworks":["x"]}"#, 2, 2),
            (r#"{"name":"m","clusterNetwork":"a","delegates":[{"name":"a"},{"name":"b"}]}"#, 1, 1),
            (r#"{"name":"m","clusterNetwork":"a","defaultNetworks":["x","y"]}"#, 1, 3),
            (r#"{"name":"m","defaultNetworks":["x"]}"#, 1, 2),
        ] {
            let conf = conf(json);
            assert_eq!(
                (before_own(&conf, "kube-system"), before_own(&conf, "ns")),
                (system, other),
                "{json}"
            );
        }
    }

    #[test]
    fn selections_get_their_namespace_and_are_isolated() {
        let conf = conf(r#"{"name":"m","namespaceIsolation":true,"multusNamespace":"net-system"}"#);
        let pod = |key: &str, value: &str| Pod {
            namespace: "a".into(),
            annotations: [(key.to_owned(), value.to_owned())].into(),
            ..Pod::default()
        };
        let own = own_selections(&conf, &pod(NETWORKS, "x,default/y")).unwrap();
        assert_eq!(own.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a/x", "default/y"]);
        let default = default_selection(&conf, &pod(DEFAULT_NETWORK, "x")).unwrap().unwrap();
        assert_eq!(default.to_string(), "net-system/x");
        for error in [
            own_selections(&conf, &pod(NETWORKS, "b/x")).unwrap_err(),
            default_selection(&conf, &pod(DEFAULT_NETWORK, "b/x")).unwrap_err(),
        ] {
            let text = error.to_string();
            let start = "namespace isolation enabled, annotation violates permission, pod is in namespace a but refers to target namespace b";
            assert!(text.starts_with(start), "{text}");
        }
        let error = own_selections(&conf, &pod(NETWORKS, "x/y/z")).unwrap_err();
        assert!(error.to_string().contains(NETWORKS));
    }
}
