//! Compute: dot products over GGUF block formats, attention over block tables, element-wise parts.
//!
//! Invariants:
//! - Every variant of a kernel returns the same bits as the scalar one, on every input: integer sums
//!   are exact, and `f32` sums have a fixed number of lanes and a fixed order, with no fused
//!   multiply-add. An answer therefore depends neither on the CPU nor on what else is in the batch.
//! - A value of [`Avx2`] or [`Avx512`] proves that the CPU has those instructions.
//! - Nothing here panics on the *values* of weights or activations; shapes are asserted.
#![expect(unsafe_code, reason = "vector loads and the worker pool; each with a SAFETY comment")]

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dot;
mod elementwise;
mod format;
mod isa;
mod matmul;
mod pool;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Activations, BLOCK, QuantisedRow};
pub use attention::{Heads, attend};
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use dot::Dot;
pub use elementwise::{add, exp, rms_norm, rope, softmax, swiglu};
pub use format::{Format, f16_to_f32, f32_to_f16};
pub use isa::Isa;
pub use matmul::{Matrix, Product, matmul};
pub use pool::Pool;
pub use scalar::Scalar;
