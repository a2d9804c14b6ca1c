//! Compute: dot products over GGUF block formats, attention over block tables, element-wise parts.
//!
//! Invariants:
//! - Every variant of a kernel returns the same bits as the scalar one, on every input: integer sums
//!   are exact, and `f32` sums have a fixed number of lanes and a fixed order, fused multiply-adds where
//!   the source says so and nowhere else. An answer therefore depends neither on the CPU nor on what
//!   else is in the batch.
//! - A value of [`Avx2`] or [`Avx512`] proves that the CPU has those instructions.
//! - Nothing here panics on the *values* of weights or activations; shapes are asserted.
#![expect(
    unsafe_code,
    reason = "vectors, the worker pool and a system call; each with a SAFETY comment"
)]

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
mod encode;
mod format;
mod isa;
mod kernels;
mod matmul;
mod pages;
mod plain;
mod pool;
mod quantised;
mod scalar;
mod simd;
mod tile;

pub use activations::{Activations, BLOCK};
pub use attention::{Heads, attend};
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use elementwise::{add, exp, gelu, layer_norm, rms_norm, rope, softmax, swiglu};
pub use encode::ENCODED_MAX;
pub use format::{Format, f16_to_f32, f32_to_f16};
pub use isa::Isa;
pub use matmul::{Matrix, Product, matmul};
pub use pages::gather_pages;
pub use plain::{SCALED, Scales};
pub use pool::Pool;
pub use scalar::Scalar;
pub use tile::{ROWS as TILE_ROWS, pack};
