//! The only listener on the network: TLS, client certificates, OpenAI HTTP API.

fn main() {}
