//! The installer stick's one program: puts the image that its UKI carries onto the disk that the operator names, and
//! enrols the Secure Boot keys of a machine whose firmware is in setup mode.
//!
//! Everything it works with lies in the UKI's initrd, so it is what the owner's db key signed; neither the stick nor
//! the network is read again.
//! Invariants: nothing is changed, neither a disk nor the firmware, before the image is known to be what the build key
//! signed and one disk was named; the firmware has the owner's keys before the disk can boot.

mod choice;
mod console;
mod firmware;
mod words;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use builder::INSTALLER_MATERIAL;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::copy::{self, Phase, SIZES, Watch};
use crate::device::Device;
use crate::disks::{Disk, Inventory};
use crate::image::Image;
use choice::{Choice, choose};
use console::Console;
use firmware::{Firmware, State};

/// Where the image is unpacked: in memory.
const UNPACKED: &str = "/run/casemate-install";
const EFIVARS: &str = "/sys/firmware/efi/efivars";
const CONSOLES: &str = "/sys/class/tty/console/active";
/// Longest `order.json`.
const ORDER_BYTES_MAX: u64 = 64 << 10;
/// How long disks are waited for: controllers of servers take a while to find theirs.
const DISKS_WAIT: Duration = Duration::from_secs(60);
const DISKS_PAUSE: Duration = Duration::from_secs(1);
/// Disks that are there are only all of them once none came for so long.
const DISKS_SETTLED: u32 = 5;
/// How often a wrong serial number may be typed.
const ATTEMPTS_MAX: u32 = 5;
/// How often progress is said.
const EVERY: Duration = Duration::from_secs(5);

/// What the stick is to do, in its signed UKI.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// Of the image: no other one is installed by this stick, however well it is signed.
    #[serde(deserialize_with = "sha256")]
    image_sha256: [u8; 32],
    /// Serial numbers of disks that are overwritten without a question; empty: the operator types one.
    serials: Vec<String>,
}

/// Installs, or says on all consoles why not. Returns whether it did.
#[must_use]
pub fn run() -> bool {
    let mut console = Console::open(Path::new(CONSOLES));
    console.say(&words::HELLO);
    match install(&mut console, &Path::new("/").join(INSTALLER_MATERIAL), Path::new(UNPACKED)) {
        Ok(()) => {
            console.say(&words::DONE);
            true
        }
        Err(error) => {
            console.say(&words::stopped(&format!("{error:#}")));
            false
        }
    }
}

fn install(console: &mut Console, material: &Path, unpacked: &Path) -> anyhow::Result<()> {
    let order = order(&material.join("order.json"))?;
    let image = image(console, material, unpacked, &order)?;
    let firmware = Firmware::new(PathBuf::from(EFIVARS), material.join("secureboot"));
    let state = firmware.state()?;
    console.say(&words::firmware(state));
    let inventory = disks(console, &order)?;
    let disk = name_one(console, &inventory, &image, &order)?;
    let device = Device::open(&disk.path())?;
    // Between the list and now somebody read and typed.
    crate::unchanged(&disk, &device)?;
    if state == State::Setup {
        firmware.enrol()?;
        console.say(&words::ENROLLED);
    }
    console.say(&words::writing(&disk.path().display().to_string()));
    let mut watch = Spoken { console, phase: None, said: None };
    copy::copy(&image, &device, &order.image_sha256, SIZES, &mut watch)
        .context(disk.path().display().to_string())
}

fn order(path: &Path) -> anyhow::Result<Order> {
    let shown = path.display().to_string();
    let length = std::fs::metadata(path).with_context(|| shown.clone())?.len();
    ensure!(length <= ORDER_BYTES_MAX, "{shown} has {length} bytes, more than {ORDER_BYTES_MAX}");
    let text = std::fs::read(path).with_context(|| shown.clone())?;
    serde_json::from_slice(&text).with_context(|| shown)
}

/// Reads 32 bytes in hex.
fn sha256<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(from)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(&text, &mut bytes).map_err(|_| {
        D::Error::custom(format!("image_sha256 is {text:?}; expected 64 hex digits"))
    })?;
    Ok(bytes)
}

/// Unpacks the image and compares it with what the build key signed, and with the order.
fn image(
    console: &mut Console,
    material: &Path,
    unpacked: &Path,
    order: &Order,
) -> anyhow::Result<Image> {
    console.say(&words::CHECKING);
    std::fs::create_dir_all(unpacked).with_context(|| unpacked.display().to_string())?;
    let path = unpacked.join("casemate.raw");
    let packed = material.join("image.extents");
    let error = |path: &Path| path.display().to_string();
    let disk = File::create_new(&path).with_context(|| error(&path))?;
    builder::unpack(File::open(&packed).with_context(|| error(&packed))?, &disk)?;
    let envelope = unpacked.join(builder::ENVELOPE);
    std::fs::copy(material.join(builder::ENVELOPE), &envelope).with_context(|| error(&envelope))?;
    let key = material.join("build.pub.pem");
    let pem = std::fs::read_to_string(&key).with_context(|| error(&key))?;
    let image = Image::open(&path)?;
    let found = image.check(&pem, &mut Spoken { console, phase: None, said: None })?;
    ensure!(
        found == order.image_sha256,
        "the build key signed another image, {}, than this stick was made for, {}",
        hex::encode(found),
        hex::encode(order.image_sha256)
    );
    Ok(image)
}

/// The disks, once no more appear.
fn disks(console: &mut Console, order: &Order) -> anyhow::Result<Inventory> {
    let deadline = Instant::now() + DISKS_WAIT;
    let (mut seen, mut settled) = (0, 0);
    loop {
        let inventory = Inventory::read(Path::new("/"))?;
        let count = inventory.disks.len();
        settled = if count == seen { settled + 1 } else { 0 };
        seen = count;
        let named = order.serials.is_empty()
            || inventory.disks.iter().any(|disk| {
                disk.serial.as_ref().is_some_and(|serial| order.serials.contains(serial))
            });
        let all = count > 0 && named && settled >= DISKS_SETTLED;
        if all || Instant::now() >= deadline {
            return Ok(inventory);
        }
        if count == 0 && settled == DISKS_SETTLED {
            console.say(&words::NO_DISK_YET);
        }
        std::thread::sleep(DISKS_PAUSE);
    }
}

/// The disk that the order or the operator names.
fn name_one(
    console: &mut Console,
    inventory: &Inventory,
    image: &Image,
    order: &Order,
) -> anyhow::Result<Disk> {
    let mut list = Vec::new();
    crate::list(inventory, Some(image.needs()), &mut list)?;
    console.say_plain(&String::from_utf8_lossy(&list));
    if !order.serials.is_empty() {
        return match choose(inventory, image.needs(), &order.serials) {
            Choice::Disk(disk) => Ok(disk.clone()),
            refused => {
                let words = refused.words(&order.serials);
                console.say(&words);
                anyhow::bail!("{}", words.english)
            }
        };
    }
    for _ in 0..ATTEMPTS_MAX {
        console.say(&words::ASK);
        let typed = console.read_line()?;
        match choose(inventory, image.needs(), std::slice::from_ref(&typed)) {
            Choice::Disk(disk) => return Ok(disk.clone()),
            refused => console.say(&refused.words(&[typed])),
        }
    }
    anyhow::bail!("no disk was named in {ATTEMPTS_MAX} attempts; nothing was written")
}

/// Says how far it is, now and then. Nobody interrupts: who pulls the plug gets a disk that does not boot.
struct Spoken<'a> {
    console: &'a mut Console,
    phase: Option<Phase>,
    said: Option<Instant>,
}

impl Watch for Spoken<'_> {
    fn see(&mut self, phase: Phase, done: u64, total: u64) {
        let is_new = self.phase != Some(phase);
        let is_due = self.said.is_none_or(|said| said.elapsed() >= EVERY);
        if is_new || is_due || done == total {
            (self.phase, self.said) = (Some(phase), Some(Instant::now()));
            self.console.say(&words::progress(phase, done, total));
        }
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}
