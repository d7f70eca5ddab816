use host::sysfs::fake::FakeSysfs;

use super::*;
use crate::allocations::Allocations;
use crate::config::parse;
use crate::discovery::DefaultRoutes;
use crate::inventory::Inventory;
use crate::pool::sort;

/// The only pool of a configuration, with the devices of the tree.
fn pool(fake: &FakeSysfs, entry: &str) -> Pool {
    let text = format!(
        r#"{{"resourceList": [{{"resourceName": "a-b", "resourcePrefix": "example.com", {entry}}}]}}"#
    );
    let (conf, _) = parse(&text, "intel.com").unwrap();
    let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
    sort(&conf, &devices, &Allocations::default()).remove(0)
}

/// Places in the tree, so that nothing of this machine is seen.
fn places(fake: &FakeSysfs) -> Places {
    Places { sysfs: fake.root().to_owned(), dev: fake.root().join("dev"), ..Places::default() }
}

fn grant(fake: &FakeSysfs, entry: &str, id: &str) -> Result<Grant, String> {
    pool(fake, entry).grant(id, &fake.sysfs(), &places(fake)).map_err(|error| error.to_string())
}

/// Host paths, with the container's where it differs.
fn nodes(grant: &Grant) -> Vec<String> {
    let text = |node: &Node| match node {
        Node { host, container } if host == container => host.clone(),
        Node { host, container } => format!("{host}={container}"),
    };
    grant.nodes.iter().map(text).collect()
}

fn info(grant: Grant, resource: &Resource) -> String {
    response(resource, &[grant], None).envs["PCIDEVICE_EXAMPLE_COM_A-B_INFO"].clone()
}

const VF: &str = "0000:3b:10.0";

#[test]
fn a_network_device_needs_no_nodes() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("igbvf").netdev("eth7");
    let pool = pool(&fake, r#""additionalInfo": {"*": {"a": "1", "b": "2"}, "0000:3b:10.0": {"b": "3"}}"#);
    let grant = pool.grant(VF, &fake.sysfs(), &places(&fake)).unwrap();
    assert_eq!(nodes(&grant), [""; 0]);
    let response = response(&pool.conf.resource, &[grant], None);
    assert_eq!(response.envs["PCIDEVICE_EXAMPLE_COM_A-B"], VF);
    assert_eq!(
        response.envs["PCIDEVICE_EXAMPLE_COM_A-B_INFO"],
        r#"{"0000:3b:10.0":{"extra":{"a":"1","b":"3"},"generic":{"deviceID":"0000:3b:10.0"}}}"#
    );
    assert_eq!(response.envs.len(), 2);
    assert!(response.devices.is_empty() && response.annotations.is_empty());
}

#[test]
fn vfio_nodes_are_those_of_now() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("igbvf");
    let pool = pool(&fake, r#""selectors": {}"#);
    let grant = |fake: &FakeSysfs| pool.grant(VF, &fake.sysfs(), &places(fake));
    // Bound to another driver after the scan.
    fake.pci(VF).driver("vfio-pci");
    let error = grant(&fake).unwrap_err().to_string();
    assert!(error.contains("no IOMMU group") && error.contains("intel_iommu=on"), "{error}");
    for group in [14, 15] {
        fake.pci(VF).iommu_group(group);
        assert_eq!(
            nodes(&grant(&fake).unwrap()),
            ["/dev/vfio/vfio".to_owned(), format!("/dev/vfio/{group}")]
        );
    }
    assert_eq!(
        info(grant(&fake).unwrap(), &pool.conf.resource),
        r#"{"0000:3b:10.0":{"generic":{"deviceID":"0000:3b:10.0"},"vfio":{"dev-mount":"/dev/vfio/15","mount":"/dev/vfio/vfio"}}}"#
    );
    fake.attribute("kernel/iommu_groups/15/name", "vfio-noiommu");
    assert_eq!(nodes(&grant(&fake).unwrap()), ["/dev/vfio/vfio", "/dev/vfio/noiommu-15=/dev/vfio/15"]);
    fake.remove(VF);
    let error = grant(&fake).unwrap_err().to_string();
    assert!(error.starts_with("device 0000:3b:10.0: no PCI device 0000:3b:10.0"), "{error}");
}

#[test]
fn variant_drivers_and_the_device_node() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("mlx5_vfio_pci").iommu_group(3).attribute("vfio-dev/vfio7/uevent", "");
    assert_eq!(nodes(&grant(&fake, r#""selectors": {}"#, VF).unwrap()), ["/dev/vfio/vfio", "/dev/vfio/3"]);
    fake.pci(VF).attribute("vfio-dev/vfio7/dev", "511:0");
    assert_eq!(nodes(&grant(&fake, r#""selectors": {}"#, VF).unwrap()).len(), 2);
    fake.attribute("class/misc/iommu/dev", "10:125");
    assert_eq!(
        nodes(&grant(&fake, r#""selectors": {}"#, VF).unwrap()),
        ["/dev/vfio/vfio", "/dev/vfio/3", "/dev/vfio/devices/vfio7", "/dev/iommu"]
    );
}

#[test]
fn uio_nodes_of_every_uio_driver() {
    for driver in ["igb_uio", "uio_pci_generic"] {
        let fake = FakeSysfs::new();
        fake.pci(VF).driver(driver).attribute("uio/uio4/name", driver);
        assert_eq!(nodes(&grant(&fake, r#""selectors": {}"#, VF).unwrap()), ["/dev/uio4"]);
    }
}

#[test]
fn rdma_nodes() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("mlx5_core").attribute("infiniband/mlx5_2/node_type", "1");
    let entry = r#""selectors": [{"vendors": ["ffff"]}, {"isRdma": true}]"#;
    let error = grant(&fake, entry, VF).unwrap_err();
    assert!(error.contains("ib_uverbs"), "{error}");
    fake.attribute("class/infiniband_verbs/uverbs2/ibdev", "mlx5_2");
    fake.attribute("class/infiniband_mad/umad2/ibdev", "mlx5_2");
    fake.attribute("dev/infiniband/rdma_cm", "");
    let granted = grant(&fake, entry, VF).unwrap();
    assert_eq!(
        nodes(&granted),
        ["/dev/infiniband/uverbs2", "/dev/infiniband/umad2", "/dev/infiniband/rdma_cm"]
    );
    assert_eq!(granted.facts["rdma"]["rdma_dev"], "mlx5_2");
    fake.pci(VF).attribute("infiniband/mlx5_9/node_type", "1");
    fake.attribute("class/infiniband_verbs/uverbs9/ibdev", "mlx5_9");
    let two = grant(&fake, entry, VF).unwrap();
    assert_eq!(nodes(&two)[2], "/dev/infiniband/uverbs9");
    let names = ["rdma_dev", "uverbs", "umad", "rdma_cm"].map(|fact| two.facts["rdma"][fact].as_str());
    assert_eq!(
        names,
        ["mlx5_2", "/dev/infiniband/uverbs2", "/dev/infiniband/umad2", "/dev/infiniband/rdma_cm"],
        "facts that belong together"
    );
    assert_eq!(nodes(&grant(&fake, r#""selectors": {}"#, VF).unwrap()), [""; 0], "only if asked for");
}

#[test]
fn vhost_net_is_there_or_an_error() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("igbvf");
    let entry = r#""selectors": {"needVhostNet": true}"#;
    assert!(grant(&fake, entry, VF).unwrap_err().contains("vhost_net"));
    fake.attribute("class/misc/vhost-net/dev", "10:238");
    assert!(grant(&fake, entry, VF).unwrap_err().contains("module tun"));
    fake.attribute("dev/net/tun", "");
    assert_eq!(nodes(&grant(&fake, entry, VF).unwrap()), ["/dev/vhost-net", "/dev/net/tun"]);
}

#[test]
fn vdpa_nodes() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("mlx5_core").vdpa("vdpa0", "vhost_vdpa");
    let entry = r#""selectors": {"vdpaType": "vhost"}"#;
    assert!(grant(&fake, entry, VF).unwrap_err().contains("module vhost_vdpa"));
    fake.pci(VF).attribute("vdpa0/vhost-vdpa-1/dev", "511:1");
    let granted = grant(&fake, entry, VF).unwrap();
    assert_eq!(nodes(&granted), ["/dev/vhost-vdpa-1"]);
    assert_eq!(granted.facts["vdpa"]["mount"], "/dev/vhost-vdpa-1");
    let info = serde_json::to_string(&granted.info).unwrap();
    assert!(info.contains(r#""type":"vdpa""#) && info.contains("vhost-vdpa-1"), "{info}");
    fake.pci(VF).vdpa("vdpa0", "virtio_vdpa");
    let granted = grant(&fake, r#""selectors": {"vdpaType": "virtio"}"#, VF).unwrap();
    assert_eq!((nodes(&granted), granted.facts["vdpa"].len()), (vec![], 0));
}

#[test]
fn several_devices_share_nodes() {
    let fake = FakeSysfs::new();
    for id in [VF, "0000:3b:10.1"] {
        fake.pci(id).driver("vfio-pci").iommu_group(9);
    }
    let pool = pool(&fake, r#""selectors": {}"#);
    let grants = [VF, "0000:3b:10.1"].map(|id| pool.grant(id, &fake.sysfs(), &places(&fake)).unwrap());
    let response = response(&pool.conf.resource, &grants, None);
    let paths: Vec<&str> = response.devices.iter().map(|spec| spec.host_path.as_str()).collect();
    assert_eq!(paths, ["/dev/vfio/9", "/dev/vfio/vfio"]);
    assert!(response.devices.iter().all(|spec| spec.permissions == "rw"));
    assert_eq!(response.envs["PCIDEVICE_EXAMPLE_COM_A-B"], "0000:3b:10.0,0000:3b:10.1");
}

#[test]
fn unknown_and_gone_devices_are_errors() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("igbvf");
    let error = grant(&fake, r#""selectors": {}"#, "0000:3b:10.7").unwrap_err();
    assert_eq!(
        error,
        "device 0000:3b:10.7 is not in example.com/a-b, which has 1 devices now; was it removed or selected otherwise?"
    );
}

#[test]
fn the_file_of_a_vf_names_pf_and_representor() {
    let fake = FakeSysfs::new();
    fake.pci("0000:3b:00.0").driver("mlx5_core").netdev("p0").sriov(8);
    fake.pci(VF).vf_of("0000:3b:00.0", 2).driver("mlx5_core");
    let file = |fake: &FakeSysfs| {
        serde_json::to_value(grant(fake, r#""selectors": {}"#, VF).unwrap().info).unwrap()["pci"].clone()
    };
    assert_eq!(file(&fake)["pf-pci-address"], "0000:3b:00.0");
    assert_eq!(file(&fake).get("representor-device"), None);
    let pf = fake.pci("0000:3b:00.0");
    pf.net_attribute("p0", "phys_switch_id", "c0ffee")
        .net_attribute("p0", "phys_port_name", "p0")
        .netdev("eth4")
        .net_attribute("eth4", "phys_switch_id", "c0ffee")
        .net_attribute("eth4", "phys_port_name", "pf0vf2");
    assert_eq!(file(&fake)["representor-device"], "eth4");
}

#[test]
fn info_has_a_place_for_each_origin() {
    let fake = FakeSysfs::new();
    fake.pci(VF).driver("igbvf");
    let granted = grant(&fake, r#""additionalInfo": {"0000:3b:10.9": {"a": "b"}}"#, VF).unwrap();
    assert_eq!(granted.facts["extra"].len(), 0);
    assert_eq!(grant(&fake, r#""selectors": {}"#, VF).unwrap().facts.get("extra"), None);
}

#[test]
fn a_scalable_function_has_no_vfio_and_no_file() {
    let fake = FakeSysfs::new();
    fake.pci("0000:03:00.0")
        .driver("vfio-pci")
        .netdev("p0")
        .auxiliary("mlx5_core.sf.4", "mlx5_core.sf")
        .attribute("mlx5_core.sf.4/sfnum", "88");
    let entry = r#""deviceType": "auxNetDevice", "selectors": {"auxTypes": ["sf"]}, "additionalInfo": {"0000:03:00.0": {"k": "v"}}"#;
    let granted = grant(&fake, entry, "mlx5_core.sf.4").unwrap();
    assert_eq!((nodes(&granted), granted.info), (vec![], None));
    assert_eq!(granted.facts["extra"]["k"], "v");
    let entry = r#""deviceType": "auxNetDevice", "selectors": {"auxTypes": ["sf"], "needVhostNet": true}"#;
    for node in ["vhost-net", "net/tun"] {
        fake.attribute(&format!("dev/{node}"), "");
    }
    let granted = grant(&fake, entry, "mlx5_core.sf.4").unwrap();
    assert_eq!(nodes(&granted), ["/dev/vhost-net", "/dev/net/tun"]);
}
