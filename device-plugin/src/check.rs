//! `-check-config`: what is suspicious in a configuration file, by itself and on this machine.

use crate::config::{Conf, Fault};
use crate::pool::{Pool, Verdict};

/// Everything that is suspicious, a line for each.
pub(crate) fn findings(
    conf: &Conf,
    suspicions: &[Fault],
    pools: &[Pool],
    verdicts: &[Verdict],
) -> Vec<String> {
    let mut findings: Vec<String> = suspicions.iter().map(Fault::to_string).collect();
    for (index, (conf_pool, pool)) in conf.pools.iter().zip(pools).enumerate() {
        let resource = &conf_pool.resource;
        let taken: Vec<(&str, usize)> = verdicts
            .iter()
            .filter_map(|verdict| {
                let earlier = verdict.pool.filter(|&taken| taken < index)?;
                conf_pool.fits(&verdict.device).map(|_| (&*verdict.device.id, earlier))
            })
            .collect();
        if let Some((id, earlier)) = taken.first()
            && let Some(by) = conf.pools.get(*earlier)
        {
            findings.push(format!(
                "resourceList[{index}]: {} devices of {resource}, {id} among them, go to an earlier entry, such as {}",
                taken.len(),
                by.resource
            ));
        } else if pool.offers.is_empty() {
            findings.push(format!(
                "resourceList[{index}]: {resource} has no device on this machine; -explain says why"
            ));
        }
        for (number, selector) in conf_pool.selectors.iter().enumerate() {
            let meets = |verdict: &Verdict| selector.takes(&verdict.device);
            if conf_pool.selectors.len() > 1 && !verdicts.iter().any(meets) {
                findings.push(format!(
                    "resourceList[{index}].selectors[{number}]: matches no device on this machine"
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::allocations::Allocations;
    use crate::config::parse;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;
    use crate::pool::judge;

    #[test]
    fn pools_that_get_less_than_they_ask_for() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:10.0").driver("igbvf");
        fake.pci("0000:3b:10.1").driver("vfio-pci");
        let text = r#"{"resourceList": [
            {"resourceName": "net", "selectors": [{"drivers": ["igbvf"]}, {"drivers": ["iavf"]}], "typo": 1},
            {"resourceName": "all"},
            {"resourceName": "none", "selectors": {"vendors": ["ffff"]}}]}"#;
        let (conf, suspicions) = parse(text, "intel.com").unwrap();
        let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
        let (pools, verdicts) = judge(&conf, &devices, &Allocations::default());
        assert_eq!(
            findings(&conf, &suspicions, &pools, &verdicts),
            [
                "2:107: resourceList[0].typo: unknown key, ignored",
                "resourceList[0].selectors[1]: matches no device on this machine",
                "resourceList[1]: 1 devices of intel.com/all, 0000:3b:10.0 among them, go to an earlier entry, such as \
                 intel.com/net",
                "resourceList[2]: intel.com/none has no device on this machine; -explain says why",
            ]
        );
    }
}
