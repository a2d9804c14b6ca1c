//! The only listener on the network.
//!
//! Invariants: a request is read only from a client whose certificate was verified; prompt and answer are
//! never logged; an answer is complete only once its record is in the ledger; each wait, queue and
//! allocation has a maximum in [`limits`]. The gateway holds no weights and opens no TPM: it knows two Unix sockets.
//!
//! | module | what |
//! |---|---|
//! | [`listener`], [`tls`], [`identity`], [`stall`] | who may speak |
//! | [`stop`] | how all of it ends |
//! | [`routes`], [`body`] | HTTP |
//! | [`openai`] | the API as data, no I/O |
//! | [`exchange`] | request → engine → ledger → response |
//! | [`engine`], [`agent`], [`frames`] | the processes behind |

pub mod agent;
pub mod body;
pub mod engine;
pub mod exchange;
pub mod frames;
pub mod identity;
pub mod journal;
pub mod limits;
pub mod listener;
pub mod openai;
pub mod routes;
pub mod stall;
pub mod stop;
pub mod tls;
