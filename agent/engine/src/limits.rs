//! Every maximum of the engine, in one place.

/// Tokens computed in one step, over all requests.
pub const STEP_TOKENS_MAX: usize = 64;
/// Tokens that an encoder computes in one step, and so of its longest text.
pub const ENCODER_STEP_TOKENS_MAX: usize = 512;
/// Tokens of a request for vectors, over all its texts: 128 steps.
pub const ENCODER_REQUEST_TOKENS_MAX: usize = 1 << 16;
/// Requests that are computed at the same time.
pub const RUNNING_MAX: usize = 16;
/// Requests that wait for a place; one more is turned away as overloaded.
pub const WAITING_MAX: usize = 64;
/// Requests of one partition that wait, so that nobody fills the queue for all.
pub const WAITING_PER_PARTITION_MAX: usize = WAITING_MAX / 4 * 3;
/// Partitions without a request whose share of the past is remembered.
pub const PARTITIONS_ABSENT_MAX: usize = 256;
/// Connections at the same time; each costs a thread.
pub const CONNECTIONS_MAX: usize = RUNNING_MAX + WAITING_MAX + 16;
/// Jobs between the connections and the engine; one more is turned away as overloaded.
pub const JOBS_QUEUED_MAX: usize = CONNECTIONS_MAX;

/// Tokens of a cache block.
pub const BLOCK_TOKENS: usize = 16;
/// Bytes of the cache, over all layers.
pub const CACHE_BYTES_MAX: usize = 384 << 20;
/// Seconds without a request after which whatever requests left in the cache is zeroed.
pub const CACHE_IDLE_S_MAX: u64 = 600;
/// Compute threads, however many processors there are.
pub const THREADS_MAX: usize = 64;

/// Bytes of prompt text per token of context: no real text has more, and what has is not worth encoding, which
/// takes some 400 times its size.
pub const PROMPT_BYTES_PER_TOKEN_MAX: usize = 16;
/// Turns of a conversation.
pub const MESSAGES_MAX: usize = 1024;
/// Stop strings of a request.
pub const STOPS_MAX: usize = 16;
/// Bytes of one stop string.
pub const STOP_BYTES_MAX: usize = 256;
/// Bytes of a partition key.
pub const PARTITION_BYTES_MAX: usize = 256;

/// Bytes of a JSON schema.
pub const SCHEMA_BYTES_MAX: usize = 32 << 10;
/// Values in a JSON schema.
pub const SCHEMA_NODES_MAX: usize = 2000;
/// Schemas within schemas.
pub const SCHEMA_DEPTH_MAX: usize = 16;
/// Highest number of repetitions that a schema may name.
pub const SCHEMA_REPEATS_MAX: u64 = 1000;
/// Bytes of a grammar or a regular expression.
pub const GRAMMAR_BYTES_MAX: usize = 8 << 10;
/// Rules and terminals of a grammar.
pub const GRAMMAR_RULES_MAX: usize = 128;
/// Negations in a grammar.
pub const GRAMMAR_NEGATIONS_MAX: usize = 32;
/// Work to make a schema's automata; some 20 ms.
pub const SCHEMA_FUEL: u64 = 1_000_000;
/// Symbols of a schema's grammar.
pub const GRAMMAR_SYMBOLS_MAX: usize = 50_000;
/// States of the automata of one answer; each takes 1 to 2 kB.
pub const LEXER_STATES_MAX: usize = 8000;
/// Work of the automata to say which tokens may come next; some 5 ms.
pub const MASK_FUEL: u64 = 70_000;
/// Items of the parser to say which tokens may come next; some 1 ms.
pub const MASK_ITEMS_MAX: usize = 20_000;

/// Bytes of a chat template.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Instructions that a template may execute.
pub const TEMPLATE_FUEL: u64 = 1_000_000;
/// Depth of a template's calls.
pub const TEMPLATE_DEPTH_MAX: usize = 64;
/// Bytes that a template may write, message texts not counted.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Seconds in which a request must have arrived, and a reply must have been taken.
pub const SOCKET_S_MAX: u64 = 10;
/// Milliseconds after which a connection looks whether its client has left.
pub const PEER_CHECK_MS: u64 = 100;

/// Bytes of a model's name.
pub const MODEL_ID_BYTES_MAX: usize = 128;
