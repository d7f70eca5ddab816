//! A delegate: one network of one sandbox, with everything its plugins will be given.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::{Attachment, NetworkList, Object, Request};

use crate::Error;
use crate::device_info;
use crate::devices::DevicePool;
use crate::kubernetes::Pod;
use crate::networks::Wanted;
use crate::node::Node;
use crate::selection::Selection;

/// The key of `args.cni` in which plugins hear of the pod's claim.
const CLAIM: &str = "ipam-claim-reference";

/// One network of one sandbox.
#[derive(Debug, Clone)]
pub struct Delegate {
    /// What status, events and logs call it.
    pub label: String,
    /// Whether it is the sandbox's primary network.
    pub is_primary: bool,
    /// The network, devices and arguments injected.
    pub list: NetworkList,
    /// Container, namespace, interface, `CNI_ARGS` and capabilities.
    pub attachment: Attachment,
    /// The resource its device is one of.
    pub resource: Option<String>,
    /// Its device.
    pub device_id: Option<String>,
    /// Gateways of the default routes that shall use it; `Some` and empty is none of its own either.
    pub default_route: Option<Vec<IpAddr>>,
}

impl Delegate {
    /// Where its plugins may tell of its device; `None` when it has none and no plugin may make one.
    #[must_use]
    pub fn device_info_file(&self, node: &Node) -> Option<PathBuf> {
        let Attachment { container_id, ifname, .. } = &self.attachment;
        has_device_info(&self.list, self.device_id.as_deref())
            .then(|| device_info_file(node, &self.label, container_id, ifname))
    }

    /// What to do when its plugins fail for want of a device.
    pub(crate) fn missing_device(&self) -> Option<String> {
        let resource = self.resource.as_ref().filter(|_| self.device_id.is_none())?;
        Some(format!(
            "kubelet allocated no device of resource {resource} to the pod; if network {} needs one, request it in \
             resources.limits of the pod's containers",
            self.label
        ))
    }
}

/// The capability by which a plugin says that it tells of a device in a file.
const DEVICE_INFO: &str = "CNIDeviceInfoFile";

fn has_device_info(list: &NetworkList, device_id: Option<&str>) -> bool {
    device_id.is_some() || list.plugins.iter().any(|plugin| plugin.has_capability(DEVICE_INFO))
}

fn device_info_file(node: &Node, label: &str, container_id: &str, ifname: &str) -> PathBuf {
    node.device_info.join("cni").join(device_info::attachment_file_name(label, container_id, ifname))
}

/// What all delegates of a sandbox have in common.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox<'a> {
    /// The call.
    pub request: &'a Request,
    /// The pod.
    pub pod: Option<&'a Pod>,
    /// What the runtime passes for capabilities.
    pub runtime_config: &'a Object,
    /// The node's paths.
    pub node: &'a Node,
}

impl Sandbox<'_> {
    /// Turns networks into delegates: settles devices, interface names, capabilities and arguments.
    ///
    /// # Errors
    /// When a device is missing, two networks want one interface name, or arguments cannot be merged.
    pub fn delegates(&self, wanted: Vec<Wanted>, devices: &mut DevicePool) -> Result<Vec<Delegate>, Error> {
        let mut delegates: Vec<Delegate> = Vec::with_capacity(wanted.len());
        for (index, wanted) in wanted.into_iter().enumerate() {
            let delegate = self.delegate(index, wanted, devices)?;
            if let Some(other) = delegates.iter().find(|d| d.attachment.ifname == delegate.attachment.ifname)
            {
                return Err(Error::InterfaceTaken {
                    network: delegate.label,
                    ifname: delegate.attachment.ifname,
                    holder: format!(
                        "network {} of the same pod has it; name another one with \"interface\"",
                        other.label
                    ),
                });
            }
            delegates.push(delegate);
        }
        Ok(delegates)
    }

    /// Turns one more network into a delegate, as the interface of the call.
    ///
    /// # Errors
    /// When a device is missing, or arguments cannot be merged.
    pub fn further(&self, mut wanted: Wanted, devices: &mut DevicePool) -> Result<Delegate, Error> {
        wanted.selection.get_or_insert_default().interface = Some(self.request.ifname.clone());
        self.delegate(1, wanted, devices)
    }

    fn delegate(&self, index: usize, wanted: Wanted, devices: &mut DevicePool) -> Result<Delegate, Error> {
        let Wanted { network, selection } = wanted;
        let is_primary = index == 0;
        let selection = selection.unwrap_or_default();
        let device_id = self.device(&network.label, network.resource.as_deref(), &selection, devices)?;
        let failed = |source| Error::Network { network: network.label.clone(), source };
        let mut list = network.list;
        if let Some(id) = &device_id {
            inject_device(&mut list, id).map_err(failed)?;
        }
        let mut args = selection.cni_args.clone().unwrap_or_default();
        if let Some(claim) = selection.ipam_claim_reference.as_ref().filter(|_| args.get(CLAIM).is_none()) {
            // For IPAM that does not read the pod.
            args.set(CLAIM, claim).map_err(failed)?;
        }
        if !args.is_empty() {
            inject_args(&mut list, &args).map_err(failed)?;
        }
        let ifname = match selection.interface.clone() {
            Some(name) => name,
            None if is_primary => self.request.ifname.clone(),
            None => format!("net{index}"),
        };
        let device_info = has_device_info(&list, device_id.as_deref())
            .then(|| device_info_file(self.node, &network.label, &self.request.container_id, &ifname));
        let capabilities = self
            .capabilities(is_primary, &selection, device_id.as_deref(), device_info.as_ref())
            .map_err(failed)?;
        let attachment = Attachment {
            container_id: self.request.container_id.clone(),
            netns: self.request.netns.clone(),
            ifname,
            args: self.args(&selection),
            capabilities,
        };
        Ok(Delegate {
            label: network.label,
            is_primary,
            list,
            attachment,
            resource: network.resource,
            device_id,
            default_route: selection.default_route,
        })
    }

    /// The next device of the network's resource. The annotation's `deviceID` counts where there is none.
    ///
    /// A resource of which kubelet allocated nothing at all need not be one of a device plugin: NADs for bridges name
    /// resources that are only counted, so that pods are scheduled where the bridge is. Whether it takes a device is
    /// for the plugin to say.
    fn device(
        &self,
        network: &str,
        resource: Option<&str>,
        selection: &Selection,
        devices: &mut DevicePool,
    ) -> Result<Option<String>, Error> {
        let Some(resource) = resource else { return Ok(selection.device_id.clone()) };
        match devices.take(resource).or_else(|| selection.device_id.clone()) {
            None if devices.knows(resource) => Err(Error::NoDevice {
                network: network.to_owned(),
                resource: resource.to_owned(),
                pod: self.pod.map_or_else(|| self.request.container_id.clone(), ToString::to_string),
                allocated: devices.allocated(resource),
            }),
            device => Ok(device),
        }
    }

    /// The runtime's values are for the primary alone: a host port is mapped once. What the pod asks of a
    /// network comes on top.
    fn capabilities(
        &self,
        is_primary: bool,
        selection: &Selection,
        device_id: Option<&str>,
        device_info: Option<&PathBuf>,
    ) -> Result<Object, cni::Error> {
        let mut capabilities = if is_primary { self.runtime_config.clone() } else { Object::new() };
        if !selection.port_mappings.is_empty() {
            capabilities.set("portMappings", &selection.port_mappings)?;
        }
        if let Some(bandwidth) = &selection.bandwidth {
            capabilities.set("bandwidth", bandwidth)?;
        }
        if !selection.ips.is_empty() {
            capabilities.set("ips", &selection.ips)?;
        }
        if let Some(mac) = &selection.mac {
            capabilities.set("mac", mac)?;
        }
        if let Some(guid) = &selection.infiniband_guid {
            capabilities.set("infinibandGUID", guid)?;
        }
        if let Some(id) = device_id {
            capabilities.set("deviceID", id)?;
        }
        if let Some(file) = device_info {
            capabilities.set(DEVICE_INFO, file)?;
        }
        Ok(capabilities)
    }

    /// `CNI_ARGS`: the pod's identity first, then whatever else the runtime passed, then what the pod asks.
    fn args(&self, selection: &Selection) -> Vec<(String, String)> {
        const IDENTITY: [&str; 4] =
            ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"];
        let mut args = vec![("IgnoreUnknown".to_owned(), "true".to_owned())];
        let mut set = |key: &str, value: &str| match args.iter_mut().find(|(k, _)| k == key) {
            Some((_, known)) => value.clone_into(known),
            None => args.push((key.to_owned(), value.to_owned())),
        };
        for key in IDENTITY {
            if let Some(value) = self.request.args.get(key) {
                set(key, value);
            }
        }
        for (key, value) in self.request.args.pairs() {
            if key != "IgnoreUnknown" {
                set(key, value);
            }
        }
        if let Some(mac) = &selection.mac {
            set("MAC", mac);
        }
        if !selection.ips.is_empty() {
            set("IP", &selection.ips.join(","));
        }
        args
    }
}

fn inject_device(list: &mut NetworkList, id: &str) -> Result<(), cni::Error> {
    for plugin in &mut list.plugins {
        plugin.config.set("deviceID", id)?;
        plugin.config.set("pciBusID", id)?;
    }
    Ok(())
}

/// Merges `extra` over `args.cni` of every plugin, key by key.
fn inject_args(list: &mut NetworkList, extra: &Object) -> Result<(), cni::Error> {
    for plugin in &mut list.plugins {
        let mut args: Object = plugin.config.decode("args")?.unwrap_or_default();
        let mut cni: Object = args.decode("cni")?.unwrap_or_default();
        for (key, value) in extra.iter() {
            cni.set_raw(key, value)?;
        }
        args.set("cni", &cni)?;
        plugin.config.set("args", &args)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use cni::{Args, Command, Version};

    use super::*;
    use crate::devices::ContainerDevices;
    use crate::nad::{Nad, Network};

    pub(crate) fn request(config: &str) -> Request {
        Request {
            command: Command::Add,
            container_id: "c0ffee".into(),
            netns: Some("/run/netns/x".into()),
            ifname: "eth0".into(),
            args: Args::parse("IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns;K8S_POD_UID=u;X=y")
                .unwrap(),
            path: vec!["/opt/cni/bin".into()],
            version: Version::V1_0_0,
            name: "multus".into(),
            config: Object::parse(config.as_bytes()).unwrap(),
            stdin: config.into(),
        }
    }

    pub(crate) fn wanted(name: &str, config: &str, resource: Option<&str>, annotation: &str) -> Wanted {
        let nad = Nad {
            namespace: "ns".into(),
            name: name.into(),
            config: Some(config.into()),
            resource: resource.map(str::to_owned),
        };
        let network = Network::of(&nad, std::path::Path::new("/nowhere")).unwrap();
        let selection = crate::selection::parse(annotation).unwrap().pop();
        Wanted { network, selection }
    }

    fn delegates(wanted: Vec<Wanted>, ids: &[&str]) -> Result<Vec<Delegate>, Error> {
        let request = request("{}");
        let runtime_config = Object::parse(br#"{"portMappings":[{"hostPort":80}],"dns":{}}"#).unwrap();
        let pod = Pod { namespace: "ns".into(), name: "p".into(), ..Pod::default() };
        let node = Node::default();
        let sandbox =
            Sandbox { request: &request, pod: Some(&pod), runtime_config: &runtime_config, node: &node };
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let mut pool = DevicePool::new(&[ContainerDevices { entries: vec![("r".into(), ids)] }]);
        sandbox.delegates(wanted, &mut pool)
    }

    /// The delegate of a network with this configuration.
    pub(crate) fn delegate(config: &str) -> Delegate {
        delegates(vec![wanted("n", config, None, "")], &[]).unwrap().remove(0)
    }

    const PLAIN: &str = r#"{"type":"x"}"#;

    #[test]
    fn interface_names() {
        let wanted = |interfaces: &[&str]| {
            let each = |(i, name): (usize, &&str)| {
                let annotation = if name.is_empty() { String::new() } else { format!("a@{name}") };
                wanted(&format!("n{i}"), PLAIN, None, &annotation)
            };
            interfaces.iter().enumerate().map(each).collect::<Vec<_>>()
        };
        let names = |interfaces: &[&str]| {
            let delegates = delegates(wanted(interfaces), &[])?;
            Ok::<Vec<_>, Error>(delegates.into_iter().map(|d| d.attachment.ifname).collect())
        };
        assert_eq!(names(&["", "", "sriov0", ""]).unwrap(), ["eth0", "net1", "sriov0", "net3"]);
        assert_eq!(names(&["main0", ""]).unwrap(), ["main0", "net1"]);
        for (interfaces, taken) in
            [(["", "a", "a"], "a"), (["", "net2", ""], "net2"), (["", "eth0", ""], "eth0")]
        {
            let text = names(&interfaces).unwrap_err().to_string();
            assert!(text.contains(&format!("interface name {taken} already exists")), "{text}");
            assert!(text.contains("of the same pod"), "{text}");
        }
    }

    #[test]
    fn devices_go_to_the_networks_in_order() {
        let list = r#"{"plugins":[{"type":"x","deviceID":"old","z":1},{"type":"y"}]}"#;
        let wanted = vec![
            wanted("a", PLAIN, None, ""),
            wanted("b", PLAIN, Some("r"), ""),
            wanted("c", list, Some("r"), r#"[{"name":"c","deviceID":"not this"}]"#),
            wanted("d", PLAIN, Some("r"), r#"[{"name":"d","deviceID":"this"}]"#),
            wanted("e", PLAIN, None, r#"[{"name":"e","deviceID":"that"}]"#),
        ];
        let delegates = delegates(wanted, &["0000:02", "0000:01"]).unwrap();
        let ids: Vec<_> = delegates.iter().map(|d| d.device_id.as_deref().unwrap_or("-")).collect();
        assert_eq!(ids, ["-", "0000:01", "0000:02", "this", "that"]);
        let third = &delegates[2];
        assert_eq!(
            String::from_utf8(third.list.to_vec()).unwrap(),
            r#"{"name":"c","plugins":[{"type":"x","deviceID":"0000:02","z":1,"pciBusID":"0000:02"},{"type":"y","deviceID":"0000:02","pciBusID":"0000:02"}]}"#
        );
        assert_eq!(third.attachment.capabilities.get("deviceID"), Some("\"0000:02\""));
        let file = "/var/run/k8s.cni.cncf.io/devinfo/cni/ns-c-c0ffee_net2";
        assert_eq!(third.device_info_file(&Node::default()).as_deref(), Some(std::path::Path::new(file)));
        assert_eq!(
            third.attachment.capabilities.get("CNIDeviceInfoFile"),
            Some(format!("{file:?}").as_str())
        );
    }

    #[test]
    fn a_network_without_its_device_is_an_error() {
        let wanted = vec![
            wanted("a", PLAIN, None, ""),
            wanted("b", PLAIN, Some("r"), ""),
            wanted("c", PLAIN, Some("r"), ""),
        ];
        let text = delegates(wanted, &["0000:01"]).unwrap_err().to_string();
        for part in ["ns/c", "resource r", "allocated 1 ", "pod ns/p", "resources.limits"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_resource_without_devices_is_only_counted() {
        let bridge = || wanted("b", PLAIN, Some("bridge.network.kubevirt.io/br1"), "");
        let delegates = delegates(vec![wanted("a", PLAIN, None, ""), bridge()], &["0000:01"]).unwrap();
        let bridge = &delegates[1];
        assert_eq!(bridge.device_id, None);
        assert_eq!(bridge.list.to_vec(), br#"{"type":"x","name":"b"}"#);
        let advice = bridge.missing_device().unwrap();
        assert!(
            advice.contains("resource bridge.network.kubevirt.io/br1") && advice.contains("network ns/b")
        );
        assert_eq!(delegates[0].missing_device(), None);
    }

    #[test]
    fn a_plugin_that_makes_its_device_tells_of_it() {
        let config = r#"{"type":"x","capabilities":{"CNIDeviceInfoFile":true}}"#;
        let delegates =
            delegates(vec![wanted("a", PLAIN, None, ""), wanted("b", config, None, "")], &[]).unwrap();
        let file = "/var/run/k8s.cni.cncf.io/devinfo/cni/ns-b-c0ffee_net1";
        let told = delegates[1].device_info_file(&Node::default());
        assert_eq!(told.as_deref(), Some(std::path::Path::new(file)));
        let capability = delegates[1].attachment.capabilities.get(DEVICE_INFO);
        assert_eq!(capability, Some(format!("{file:?}").as_str()));
        assert_eq!(delegates[0].device_info_file(&Node::default()), None);
    }

    #[test]
    fn the_runtimes_capabilities_are_the_primarys() {
        let asked = r#"[{"name":"b","ips":["10.0.0.1/8","fd00::1"],"mac":"02:00:00:00:00:01",
            "infiniband-guid":"02:00:00:00:00:00:00:01","portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp"}],
            "bandwidth":{"ingressRate":1}}]"#;
        let delegates =
            delegates(vec![wanted("a", PLAIN, None, ""), wanted("b", PLAIN, None, asked)], &[]).unwrap();
        let text = |i: usize| String::from_utf8(delegates[i].attachment.capabilities.to_vec()).unwrap();
        assert_eq!(text(0), r#"{"portMappings":[{"hostPort":80}],"dns":{}}"#);
        assert_eq!(
            text(1),
            r#"{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp"}],"bandwidth":{"ingressRate":1,"ingressBurst":0,"egressRate":0,"egressBurst":0},"ips":["10.0.0.1/8","fd00::1"],"mac":"02:00:00:00:00:01","infinibandGUID":"02:00:00:00:00:00:00:01"}"#
        );
        let args = |i: usize| delegates[i].attachment.args.iter().cloned().collect::<Args>().to_string();
        let common = "IgnoreUnknown=true;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u;X=y";
        assert_eq!(args(0), common);
        assert_eq!(args(1), format!("{common};MAC=02:00:00:00:00:01;IP=10.0.0.1/8,fd00::1"));
    }

    #[test]
    fn a_claim_is_told_to_the_plugins() {
        for (asked, want) in [
            (
                r#"[{"name":"b","ipam-claim-reference":"vm"}]"#,
                r#""args":{"cni":{"ipam-claim-reference":"vm"}}"#,
            ),
            (
                r#"[{"name":"b","ipam-claim-reference":"vm","cni-args":{"ipam-claim-reference":"mine"}}]"#,
                r#""args":{"cni":{"ipam-claim-reference":"mine"}}"#,
            ),
        ] {
            let delegates = delegates(vec![wanted("b", PLAIN, None, asked)], &[]).unwrap();
            let text = String::from_utf8(delegates[0].list.to_vec()).unwrap();
            assert!(text.contains(want), "{text}");
        }
        let delegates = delegates(vec![wanted("b", PLAIN, None, r#"[{"name":"b"}]"#)], &[]).unwrap();
        assert!(!String::from_utf8(delegates[0].list.to_vec()).unwrap().contains("args"));
    }

    #[test]
    fn arguments_are_merged() {
        let asked = r#"[{"name":"b","cni-args":{"a":9007199254740993,"c":{}}}]"#;
        for (config, want) in [
            (PLAIN, r#""args":{"cni":{"a":9007199254740993,"c":{}}}"#),
            (
                r#"{"type":"x","args":{"labels":[1],"cni":{"b":1,"a":0}}}"#,
                r#""args":{"labels":[1],"cni":{"b":1,"a":9007199254740993,"c":{}}}"#,
            ),
        ] {
            let delegates = delegates(vec![wanted("b", config, None, asked)], &[]).unwrap();
            let text = String::from_utf8(delegates[0].list.to_vec()).unwrap();
            assert!(text.contains(want), "{text}");
        }
        for config in [r#"{"type":"x","args":7}"#, r#"{"type":"x","args":{"cni":[]}}"#] {
            let text = delegates(vec![wanted("b", config, None, asked)], &[]).unwrap_err().to_string();
            assert!(text.starts_with("network ns/b: "), "{text}");
        }
    }
}
