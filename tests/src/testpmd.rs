//! The DPDK program of the suite.

use crate::pod::PodSpec;
use crate::prepare::VFIO;

/// Sends as fast as it can through the VF that the device plugin names, and reports every second.
const COMMAND: &str = "exec dpdk-testpmd -l 0,1 -n 1 --in-memory --no-telemetry -a \"$PCIDEVICE_INTEL_COM_SRIOV_DPDK\" -- \
     --auto-start --forward-mode=txonly --total-num-mbufs=2048 --stats-period=1";

/// A pod that runs testpmd on a vfio VF.
pub fn pod(name: &str) -> PodSpec {
    PodSpec::new(name).devices(VFIO, 1).hugepages().shell(COMMAND)
}

/// The rates that testpmd has reported so far, in packets per second, oldest first.
pub fn packets_per_second(log: &str) -> Vec<u64> {
    let reported = log.lines().filter_map(|line| line.trim().strip_prefix("Tx-pps:"));
    reported.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::packets_per_second;

    #[test]
    fn rates_are_read_from_the_statistics() {
        let log = "  Throughput (since last show)\n  Rx-pps:            0          Rx-bps:            0\n  \
                   Tx-pps:      1430129          Tx-bps:    732226304\n  Tx-pps: 7  Tx-bps: 1";
        assert_eq!(packets_per_second(log), [1_430_129, 7]);
        assert!(packets_per_second("EAL: nothing").is_empty());
    }
}
