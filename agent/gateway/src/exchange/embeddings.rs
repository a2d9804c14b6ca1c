//! The vectors of an exchange, as they come.

use ipc::{EMBED_VECTORS_BYTES_MAX, EngineReply, Finish, vector_from_hex};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Asked, End, Event, Tally, engine_fault, out_of_turn, send};
use crate::engine::{Answering, EngineError};
use crate::openai::answer::{Ending, Usage};
use crate::openai::embeddings::{EmbeddingsRequest, bytes};

/// Passes on a vector for each text: of finite numbers, as many in each, and as many as were asked for.
pub(super) async fn collect(
    asked: &Asked,
    request: &EmbeddingsRequest,
    mut answering: Answering,
    events: &mpsc::Sender<Event>,
    tally: &mut Tally,
) -> Result<End, End> {
    let fault = |error| End::Failed(engine_fault(asked, &error));
    let mut dimensions = request.dimensions.and_then(|number| usize::try_from(number).ok());
    for _ in &request.inputs {
        let vector = match answering.next().await.map_err(fault)? {
            EngineReply::Vector { hex } => vector_from_hex(&hex),
            other => return Err(out_of_turn(asked, &other)),
        };
        let expected = |vector: &Vec<f32>| vector.len() == *dimensions.get_or_insert(vector.len());
        let vector = vector.filter(expected).filter(|vector| !vector.is_empty());
        let bytes = vector.as_deref().map(bytes).unwrap_or_default();
        tally.answer_bytes += bytes.len();
        let Some(vector) = vector.filter(|_| tally.answer_bytes <= EMBED_VECTORS_BYTES_MAX) else {
            return Err(fault(EngineError::OutOfTurn { found: "another vector" }));
        };
        tally.answer = Sha256::clone(&tally.answer).chain_update(bytes);
        send(events, Event::Vector(vector)).await?;
    }
    let prompt_tokens = tally.prompt_tokens;
    let usage = Usage { prompt_tokens, completion_tokens: 0, cached_tokens: 0 };
    Ok(End::Finished(Ending { finish: Finish::Stop, usage, receipt: None }))
}
