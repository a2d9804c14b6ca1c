//! Event types: TCG PC Client Platform Firmware Profile Specification 1.06, "Event Types".

use std::fmt;

/// The type of an event. Any number may stand in a log; those of the specification have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKind(pub u32);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl EventKind {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The specification's name, if it has one.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(concat!("EV_", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// Reserved.
    PREBOOT_CERT = 0x0000_0000;
    /// Firmware code.
    POST_CODE = 0x0000_0001;
    /// Reserved.
    UNUSED = 0x0000_0002;
    /// Informative: the one type that extends no PCR.
    NO_ACTION = 0x0000_0003;
    /// End of the firmware's events of a PCR.
    SEPARATOR = 0x0000_0004;
    /// A described action.
    ACTION = 0x0000_0005;
    /// A tagged event of the operating system's loader or kernel.
    EVENT_TAG = 0x0000_0006;
    /// Contents of the root of trust for measurement.
    S_CRTM_CONTENTS = 0x0000_0007;
    /// Version of the root of trust for measurement.
    S_CRTM_VERSION = 0x0000_0008;
    /// CPU microcode.
    CPU_MICROCODE = 0x0000_0009;
    /// Platform configuration.
    PLATFORM_CONFIG_FLAGS = 0x0000_000a;
    /// Table of devices.
    TABLE_OF_DEVICES = 0x0000_000b;
    /// Numeric hash of a table.
    COMPACT_HASH = 0x0000_000c;
    /// Loader code or its inputs; systemd-stub's measurements are of this type.
    IPL = 0x0000_000d;
    /// Loader's partition data.
    IPL_PARTITION_DATA = 0x0000_000e;
    /// Code without a host.
    NONHOST_CODE = 0x0000_000f;
    /// Configuration of code without a host.
    NONHOST_CONFIG = 0x0000_0010;
    /// Information of code without a host.
    NONHOST_INFO = 0x0000_0011;
    /// A boot device is left out.
    OMIT_BOOT_DEVICE_EVENTS = 0x0000_0012;
    /// First code after POST.
    POST_CODE2 = 0x0000_0013;
    /// First of the UEFI types.
    EFI_EVENT_BASE = 0x8000_0000;
    /// A variable that configures drivers: Secure Boot's among them.
    EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001;
    /// A boot variable.
    EFI_VARIABLE_BOOT = 0x8000_0002;
    /// A UEFI application that was started.
    EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003;
    /// A boot services driver.
    EFI_BOOT_SERVICES_DRIVER = 0x8000_0004;
    /// A run-time services driver.
    EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005;
    /// The partition table.
    EFI_GPT_EVENT = 0x8000_0006;
    /// A described action of UEFI.
    EFI_ACTION = 0x8000_0007;
    /// A firmware blob.
    EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008;
    /// Tables handed to the operating system.
    EFI_HANDOFF_TABLES = 0x8000_0009;
    /// A described firmware blob.
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000a;
    /// Described tables handed to the operating system.
    EFI_HANDOFF_TABLES2 = 0x8000_000b;
    /// A boot variable, its data only.
    EFI_VARIABLE_BOOT2 = 0x8000_000c;
    /// The partition table, without unique identifiers.
    EFI_GPT_EVENT2 = 0x8000_000d;
    /// A root of trust started by the TPM itself.
    EFI_HCRTM_EVENT = 0x8000_0010;
    /// The certificate that admitted an application.
    EFI_VARIABLE_AUTHORITY = 0x8000_00e0;
    /// Firmware of a device, by SPDM.
    EFI_SPDM_FIRMWARE_BLOB = 0x8000_00e1;
    /// Configuration of a device, by SPDM.
    EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00e2;
    /// Policy for devices, by SPDM.
    EFI_SPDM_DEVICE_POLICY = 0x8000_00e3;
    /// Certificate of a device, by SPDM.
    EFI_SPDM_DEVICE_AUTHORITY = 0x8000_00e4;
}

impl EventKind {
    /// Whether events of this type extend a PCR.
    #[must_use]
    pub fn is_measured(self) -> bool {
        self != Self::NO_ACTION
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#010x}", self.0),
        }
    }
}
