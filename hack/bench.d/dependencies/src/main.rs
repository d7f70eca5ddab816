//! The sysfs part of a scan with `sysfs-class`, with `host::sysfs`, and with nothing but reads, over the same tree.

use std::fs;
use std::io;
use std::panic;
use std::path::{Path, PathBuf};
use std::time::Instant;

use host::PciAddress;
use host::sysfs::Sysfs;
use host::sysfs::fake::FakeSysfs;
use serde_json::{Value, json};
use sysfs_class::{PciDevice, SysClass};

const ROUNDS: usize = 15;

/// What every scan asks of a function: vendor, device, class and driver.
type Answers = Vec<(u32, u32, u32, String)>;

fn raw(root: &Path) -> io::Result<Answers> {
    let mut answers = Vec::new();
    for entry in fs::read_dir(root.join("bus/pci/devices"))? {
        let path = entry?.path();
        let number = |name: &str| -> io::Result<u32> {
            let text = fs::read_to_string(path.join(name))?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(io::Error::other)
        };
        let driver = fs::read_link(path.join("driver"))?;
        let driver = driver.file_name().unwrap_or_default().to_string_lossy().into_owned();
        answers.push((number("vendor")?, number("device")?, number("class")?, driver));
    }
    Ok(answers)
}

fn ours(sysfs: &Sysfs) -> Answers {
    let devices = sysfs.pci_devices().expect("the fake tree can be listed");
    let number = |text: String| u32::from_str_radix(&text, 16).expect("an ID");
    let answer = |device: &host::sysfs::PciDevice| {
        Ok::<_, host::sysfs::SysfsError>((
            number(device.vendor()?),
            number(device.device()?),
            device.class()?,
            device.driver()?.unwrap_or_default(),
        ))
    };
    devices.iter().map(|device| answer(device).expect("the fake tree can be read")).collect()
}

/// The only way to a root that is not `/sys`.
fn theirs_at(path: PathBuf) -> PciDevice {
    // SAFETY: the constructor checks nothing, and nothing depends on what it would check.
    unsafe { PciDevice::from_path_unchecked(path) }
}

fn theirs(root: &Path) -> io::Result<Answers> {
    let mut answers = Vec::new();
    for entry in fs::read_dir(root.join("bus/pci/devices"))? {
        let device = theirs_at(entry?.path());
        let driver = device.driver()?.id().to_owned();
        answers.push((device.vendor()?.into(), device.device()?.into(), device.class()?, driver));
    }
    Ok(answers)
}

/// Runs the three in turn, so that what else the machine does falls on all of them; medians in milliseconds.
fn medians(mut cases: [&mut dyn FnMut() -> Answers; 3]) -> [f64; 3] {
    let mut times = [const { Vec::new() }; 3];
    let mut expected = Answers::new();
    for round in 0..=ROUNDS {
        for (case, times) in cases.iter_mut().zip(&mut times) {
            let started = Instant::now();
            let mut answers = case();
            let time = started.elapsed().as_secs_f64() * 1e3;
            answers.sort_unstable();
            if expected.is_empty() {
                expected = answers;
            } else {
                assert_eq!(answers, expected, "all three must read the same");
            }
            if round > 0 {
                times.push(time);
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}

fn main() {
    #[cfg(feature = "names")]
    if std::env::args().any(|argument| argument == "names") {
        println!("{:?}", pci_ids::Device::from_vid_pid(0x8086, 0x10ca).map(|device| device.name()));
        return;
    }
    let fake = FakeSysfs::new();
    for index in 0..2048_u32 {
        let address =
            format!("{:04x}:{:02x}:{:02x}.{}", 1 + index / 1024, index / 256 % 4, index / 8 % 32, index % 8);
        fake.pci(&address).driver("igbvf");
    }
    let [raw, theirs, ours] = medians([
        &mut || raw(fake.root()).expect("the fake tree can be read"),
        &mut || theirs(fake.root()).expect("the fake tree can be read"),
        &mut || ours(&fake.sysfs()),
    ]);

    let address: PciAddress = "0001:00:00.0".parse().expect("an address");
    let short = format!("bus/pci/devices/{address}/vendor");
    fs::write(fake.root().join(&short), "8").expect("an attribute");
    panic::set_hook(Box::new(|_| ()));
    let device = theirs_at(fake.root().join(&short).parent().expect("a directory").to_owned());
    let panics_theirs = panic::catch_unwind(|| device.vendor().is_ok()).is_err();
    let sysfs = fake.sysfs();
    let panics_ours =
        panic::catch_unwind(|| sysfs.pci_device(address).is_ok_and(|device| device.vendor().is_ok()))
            .is_err();

    let row = |case: &str, value: f64, unit: &str, baseline: Option<f64>| -> Value {
        json!({
            "case": case, "value": value, "unit": unit, "baseline": baseline,
            "ratio": baseline.map(|baseline| value / baseline), "aim": null, "held": null,
        })
    };
    let count = |panics: bool| f64::from(u8::from(panics));
    let rows = [
        row("2048 functions by reads alone", raw, "ms", None),
        row("2048 functions by sysfs-class", theirs, "ms", Some(raw)),
        row("2048 functions by host::sysfs", ours, "ms", Some(raw)),
        row("panics of sysfs-class on a short attribute", count(panics_theirs), "panics", None),
        row("panics of host::sysfs on a short attribute", count(panics_ours), "panics", None),
    ];
    println!("{}", Value::from(rows.to_vec()));
}
