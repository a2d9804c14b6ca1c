//! Which variant runs on this CPU.

use crate::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::{Avx2, Avx512};

/// The variant chosen for this process.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    /// Portable.
    Scalar(Scalar),
    /// AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 with BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Isa {
    /// The best variant of this CPU.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx512) = Avx512::detect() {
                return Self::Avx512(avx512);
            }
            if let Some(avx2) = Avx2::detect() {
                return Self::Avx2(avx2);
            }
        }
        Self::Scalar(Scalar)
    }

    /// `scalar`, `avx2` or `avx512`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
        }
    }
}

/// Evaluates `$body` with `$kernels` bound to the variant's proof: one dispatch per operation, not per
/// element.
macro_rules! with_variant {
    ($isa:expr, $kernels:ident => $body:expr) => {
        match $isa {
            $crate::Isa::Scalar($kernels) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2($kernels) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512($kernels) => $body,
        }
    };
}
pub(crate) use with_variant;
