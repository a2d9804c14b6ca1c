//! `tokens MODEL TEXT…`: the prompt that the engine makes of each text as one user's turn, as token numbers.
//!
//! The sockets tell how many tokens a prompt has; a comparison with another engine wants to know which.

use std::error::Error;

use engine::load::{Machine, open};
use engine::request::prepare;
use ipc::{Chat, Load, Message, Role, Sampling};
use kernels::Isa;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("usage: tokens MODEL TEXT…")?;
    let bytes = std::fs::read(&model).map_err(|error| format!("{model}: {error}"))?;
    let load =
        Load { model_id: "tokens".to_owned(), bundle_digest: "0".repeat(64), files: Vec::new() };
    let loaded =
        open(&load, std::sync::Arc::new(bytes), Machine { isa: Isa::detect(), threads: 1 })?;
    for content in args {
        let chat = Chat {
            messages: vec![Message { role: Role::User, content }],
            max_tokens: 1,
            sampling: Sampling::greedy(),
            logprobs: None,
            format: None,
            stop: Vec::new(),
            partition: String::new(),
            priority: 0,
            receipt: None,
        };
        let numbers: Vec<String> =
            prepare(chat, &loaded)?.prompt.iter().map(u32::to_string).collect();
        println!("{}", numbers.join(" "));
    }
    Ok(())
}
