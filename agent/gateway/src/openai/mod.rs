//! OpenAI's API as data: requests, answers, errors. No I/O.

pub mod answer;
pub mod embeddings;
pub mod error;
mod format;
mod messages;
pub mod request;
mod sampling;
