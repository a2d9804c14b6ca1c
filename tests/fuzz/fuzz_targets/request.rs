//! The body of a chat request from any client that has a certificate: what is accepted is in range, what is not is
//! the client's fault and is answered in few bytes.
#![no_main]

use gateway::limits::{ERROR_BYTES_MAX, MESSAGES_MAX, STOP_BYTES_MAX, STOPS_MAX};
use gateway::openai::request;
use libfuzzer_sys::fuzz_target;

/// Bytes of an error's object around its two quoted texts, each of which JSON may escape sixfold.
const ERROR_OBJECT_BYTES_MAX: usize = 256 + 2 * 6 * (ERROR_BYTES_MAX + "…".len());

fuzz_target!(|body: &[u8]| {
    match request::parse(body) {
        Ok(request) => {
            assert!((1..=MESSAGES_MAX).contains(&request.messages.len()));
            assert_eq!(request.sampling.check(), Ok(()));
            assert!(request.logprobs.is_none_or(|top| top <= 20));
            assert!(request.max_tokens.is_none_or(|(tokens, _)| tokens >= 1));
            assert!(request.stop.len() <= STOPS_MAX);
            assert!(request.stop.iter().all(|stop| (1..=STOP_BYTES_MAX).contains(&stop.len())));
            assert!(request.stream || !request.include_usage);
        }
        Err(error) => {
            assert!(error.status().is_client_error(), "{error}");
            assert!(error.object().to_string().len() <= ERROR_OBJECT_BYTES_MAX);
        }
    }
});
