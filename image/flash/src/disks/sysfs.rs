//! Attributes of block devices as sysfs and udev's database show them.
//! Invariant: what comes from a disk reaches a terminal only through [`printable`].

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

/// Longest attribute that is read.
const ATTRIBUTE_BYTES_MAX: u64 = 4096;
/// Longest record of udev's database that is read.
const RECORD_BYTES_MAX: u64 = 64 << 10;
/// Longest text of a disk that is shown, in characters.
const TEXT_CHARS_MAX: usize = 80;
/// Bytes of a SCSI vital product data page before its content. SPC-4, 7.8.1.
const PAGE_HEADER_BYTES: usize = 4;

/// What udev's database says of a device; all empty where no udev runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) table: Option<String>,
    pub(super) filesystem: Option<String>,
    pub(super) label: Option<String>,
}

/// An attribute's text, without the spaces that firmware pads it with; `None` if it is missing or empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let bytes = bytes(path, ATTRIBUTE_BYTES_MAX)?;
    let text = printable(String::from_utf8_lossy(&bytes).trim());
    (!text.is_empty()).then_some(text)
}

/// An attribute that is a number.
pub(super) fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The serial number of the disk at `block`, a folder of /sys/block.
pub(super) fn serial(block: &Path) -> Option<String> {
    // virtio; NVMe and MMC; SCSI, SAS and, as libata translates it, SATA; USB bridges that have no such page.
    text(&block.join("serial"))
        .or_else(|| text(&block.join("device/serial")))
        .or_else(|| unit_serial(&bytes(&block.join("device/vpd_pg80"), ATTRIBUTE_BYTES_MAX)?))
        .or_else(|| usb_serial(block))
        // A character that cannot be typed would make a disk that nobody can name.
        .filter(|serial| serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '))
}

/// Names the medium, not the path to it: the same for two paths to one disk, another for two disks of one controller.
pub(super) fn wwid(block: &Path) -> Option<String> {
    text(&block.join("wwid")).or_else(|| text(&block.join("device/wwid")))
}

/// Maker and model.
pub(super) fn model(block: &Path) -> Option<String> {
    let model = text(&block.join("device/model"))
        .or_else(|| text(&block.join("device/name")))
        .or_else(|| text(&block.join("loop/backing_file")))?;
    match text(&block.join("device/vendor")) {
        // "ATA" is what libata says for every SATA disk; virtio has a PCI number there.
        Some(vendor) if vendor != "ATA" && !vendor.starts_with("0x") => {
            Some(format!("{vendor} {model}"))
        }
        _ => Some(model),
    }
}

/// How the disk is attached.
pub(super) fn transport(name: &str, block: &Path) -> &'static str {
    let place = fs::canonicalize(block).unwrap_or_default();
    let is_below = |prefix: &str| {
        place.iter().any(|part| {
            let rest = part.to_str().and_then(|part| part.strip_prefix(prefix));
            rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
        })
    };
    match name {
        _ if name.starts_with("nvme") => "nvme",
        _ if name.starts_with("loop") => "loop",
        _ if name.starts_with("mmcblk") => "mmc",
        _ if is_below("usb") => "usb",
        _ if is_below("ata") => "sata",
        _ if is_below("virtio") => "virtio",
        _ if is_below("host") => "scsi",
        _ => "other",
    }
}

/// The record of the device with the number `dev`, as in `8:1`.
pub(super) fn record(root: &Path, dev: &str) -> Record {
    let path = root.join("run/udev/data").join(format!("b{dev}"));
    let bytes = bytes(&path, RECORD_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("E:")?.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix('=')).map(printable)
    };
    Record {
        table: value("ID_PART_TABLE_TYPE"),
        filesystem: value("ID_FS_TYPE"),
        label: value("ID_FS_LABEL"),
    }
}

/// The label that the partition table gives a partition.
pub(super) fn partition_label(block: &Path) -> Option<String> {
    let uevent = text_lines(&block.join("uevent"))?;
    let label = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME="))?;
    (!label.is_empty()).then(|| printable(label))
}

/// `text` as it may be shown: a label may hold control characters that rewrite the line before it.
pub(super) fn printable(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    text.chars().take(TEXT_CHARS_MAX).map(|c| if is_plain(c) { c } else { '?' }).collect()
}

/// SPC-4, 7.8.15 "Unit Serial Number VPD page": code 80h, length in bytes 2 and 3, then ASCII.
fn unit_serial(page: &[u8]) -> Option<String> {
    let &[_, 0x80, high, low] = page.first_chunk::<PAGE_HEADER_BYTES>()? else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let serial = page.get(PAGE_HEADER_BYTES..PAGE_HEADER_BYTES + length)?;
    let trimmed = String::from_utf8_lossy(serial);
    let text = printable(trimmed.trim_matches(|c: char| c == '\0' || c.is_whitespace()));
    (!text.is_empty()).then_some(text)
}

/// The serial number of the USB device that `block` is a part of.
fn usb_serial(block: &Path) -> Option<String> {
    let device = fs::canonicalize(block.join("device")).ok()?;
    let usb = device.ancestors().find(|folder| folder.join("idVendor").exists())?;
    text(&usb.join("serial"))
}

fn text_lines(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&bytes(path, ATTRIBUTE_BYTES_MAX)?).into_owned())
}

fn bytes(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(bytes_max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_serial_number_is_what_its_page_holds() {
        let page = |text: &[u8]| {
            let length = u8::try_from(text.len()).unwrap();
            unit_serial(&[&[0, 0x80, 0, length], text].concat())
        };
        assert_eq!(page(b"  WD-1234 "), Some("WD-1234".to_owned()));
        assert_eq!(page(b"S\0\0"), Some("S".to_owned()));
        assert_eq!(page(b"    "), None);
        for bad in [&[0, 0x83, 0, 1, b'x'][..], &[0, 0x80, 0, 2, b'x'], &[0, 0x80], &[]] {
            assert_eq!(unit_serial(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_label_cannot_write_over_the_line_before_it() {
        assert_eq!(printable("a\r\u{1b}[2Kb\u{202e}é"), "a??[2Kb?é");
        assert_eq!(printable(&"x".repeat(100)).len(), TEXT_CHARS_MAX);
    }
}
