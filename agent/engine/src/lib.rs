//! The inference engine: sequences, blocks, scheduler, model, sampler, and the sockets around them.
//!
//! Invariants:
//! - An answer depends on its request alone: not on what else runs, on the order of arrival, on the CPU's vector
//!   width or on the number of threads.
//! - No prompt and no answer is ever logged.
//! - Nothing panics on bad input; every queue, loop over input and allocation has a maximum in [`limits`].

pub mod answer;
pub mod blocks;
pub mod checkpoint;
pub mod constraint;
pub mod cpu;
pub mod encoder;
pub mod engine;
pub mod gguf;
pub mod limits;
pub mod load;
pub mod log;
pub mod model;
pub mod pack;
pub mod quantise;
pub mod receipt;
pub mod request;
pub mod safetensors;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod server;
pub mod shape;
pub mod shares;
pub mod telling;
pub mod template;
pub mod tokenizer;
pub mod weights;

#[cfg(test)]
#[path = "../tests/synthetic/mod.rs"]
pub(crate) mod synthetic;
