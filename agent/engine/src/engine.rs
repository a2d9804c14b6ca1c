//! The loop: plan a step, compute it, sample, tell the requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use ipc::Finish;

use crate::answer::Answer;
use crate::model::{Compute, Row, forward};
use crate::sampler::{NoFiniteLogits, Sampler, Sampling};
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Sequence, SequenceId};
use crate::tokenizer::Tokenizer;

/// One request, checked: its prompt is not empty, and prompt and answer fit the context.
#[derive(Debug)]
pub struct Job {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer, at least 1.
    pub answer_max: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The answer ends before the first of these.
    pub stops: Vec<String>,
    /// Where events go: at most `answer_max + 2`, so the channel needs no bound of its own.
    pub events: Sender<Event>,
    /// Set by whoever waits for the events, once it no longer does.
    pub cancelled: Arc<AtomicBool>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It waits for its turn.
    Accepted,
    /// More text; never empty.
    Delta(String),
    /// The answer is complete.
    Done {
        /// Why.
        finish: Finish,
        /// Tokens sampled, the one that ends the answer included.
        tokens: u32,
    },
    /// The queue is full.
    Overloaded,
    /// The engine failed.
    Failed(String),
}

/// Computes all requests of one model.
pub struct Engine {
    compute: Box<dyn Compute>,
    scheduler: Scheduler,
    tokenizer: Arc<Tokenizer>,
    requests: BTreeMap<SequenceId, Request>,
    next: u64,
}

struct Request {
    sampler: Sampler,
    answer: Answer,
    tokens: u32,
    events: Sender<Event>,
    cancelled: Arc<AtomicBool>,
}

impl Engine {
    /// An engine without requests.
    #[must_use]
    pub fn new(compute: Box<dyn Compute>, scheduler: Scheduler, tokenizer: Arc<Tokenizer>) -> Self {
        Self { compute, scheduler, tokenizer, requests: BTreeMap::new(), next: 0 }
    }

    /// Answers jobs until nobody can send any.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            if self.scheduler.is_idle() {
                match jobs.recv() {
                    Ok(job) => self.start(job),
                    Err(_) => return,
                }
            }
            while let Ok(job) = jobs.try_recv() {
                self.start(job);
            }
            self.drop_cancelled();
            self.step();
        }
    }

    fn start(&mut self, job: Job) {
        let id = SequenceId(self.next);
        self.next += 1;
        let sequence = Sequence::new(id, job.prompt, job.answer_max);
        let event = match self.scheduler.enqueue(sequence) {
            Ok(()) => Event::Accepted,
            Err(_) => Event::Overloaded,
        };
        let accepted = event == Event::Accepted;
        // A receiver that is gone has set `cancelled`, which the next step sees.
        let sent = job.events.send(event).is_ok();
        if accepted {
            let request = Request {
                sampler: Sampler::new(job.sampling),
                answer: Answer::new(job.stops),
                tokens: 0,
                events: job.events,
                cancelled: job.cancelled,
            };
            self.requests.insert(id, request);
            if !sent {
                self.end(id);
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let cancelled = self.requests.iter().filter(|r| r.1.cancelled.load(Ordering::Relaxed));
        for id in cancelled.map(|r| *r.0).collect::<Vec<_>>() {
            self.end(id);
        }
    }

    fn step(&mut self) {
        let plan = self.scheduler.schedule();
        self.scheduler.apply(&plan);
        for (id, sampled) in self.compute(&plan) {
            self.advance(id, sampled);
        }
    }

    /// Computes a plan; returns what was sampled.
    fn compute(&mut self, plan: &Plan) -> Vec<(SequenceId, Result<u32, NoFiniteLogits>)> {
        let mut batch = Vec::new();
        let mut sampled = Vec::new();
        for work in &plan.work {
            let Some(sequence) = self.scheduler.running(work.id) else { continue };
            for position in work.tokens.clone() {
                let logits = work.sample && position + 1 == work.tokens.end;
                let (token, table) = (sequence.tokens[position], sequence.table.blocks());
                batch.push(Row { token, position, table, logits });
            }
            sampled.extend(work.sample.then_some(work.id));
        }
        if batch.is_empty() {
            return Vec::new();
        }
        let logits = forward(self.compute.as_mut(), &batch);
        let rows = logits.chunks_exact(self.tokenizer.vocabulary());
        let choose = |(id, logits)| {
            let request: &mut Request = self.requests.get_mut(&id)?;
            Some((id, request.sampler.sample(logits)))
        };
        sampled.into_iter().zip(rows).filter_map(choose).collect()
    }

    fn advance(&mut self, id: SequenceId, sampled: Result<u32, NoFiniteLogits>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let token = match sampled {
            Ok(token) => token,
            Err(error) => {
                request.tell(Event::Failed(error.to_string()));
                return self.end(id);
            }
        };
        request.tokens += 1;
        let ended = self.tokenizer.is_end(token);
        if !ended {
            let text = request.answer.push(token, &self.tokenizer);
            request.tell_text(text);
        }
        let room = self.scheduler.append(id, token);
        let finish = if ended || request.answer.stopped() {
            Finish::Stop
        } else if !room {
            Finish::Length
        } else {
            return;
        };
        let rest = request.answer.finish();
        // The held-back end may complete a stop string no more: it was looked for at each push.
        request.tell_text(rest);
        request.tell(Event::Done { finish, tokens: request.tokens });
        self.end(id);
    }

    fn end(&mut self, id: SequenceId) {
        self.requests.remove(&id);
        let dirty = self.scheduler.remove(id);
        let clean = self.compute.zero(dirty);
        self.scheduler.recycle(clean);
    }
}

impl Request {
    fn tell_text(&self, text: String) {
        if !text.is_empty() {
            self.tell(Event::Delta(text));
        }
    }

    fn tell(&self, event: Event) {
        if self.events.send(event).is_err() {
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("requests", &self.requests.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockPool;
    use crate::cpu::Cpu;
    use crate::gguf::Gguf;
    use crate::limits::BLOCK_TOKENS;
    use crate::model::Shape;
    use crate::scheduler::Limits;
    use crate::synthetic;
    use crate::weights::Weights;
    use kernels::{Isa, Pool};
    use std::sync::mpsc::channel;

    const BLOCKS: u32 = 24;

    fn engine() -> Engine {
        let bytes = synthetic::model().build();
        let gguf = Gguf::parse(&bytes).unwrap();
        let shape = Shape::read(&gguf).unwrap();
        let weights = Weights::find(&gguf, &shape, Arc::new(bytes.clone())).unwrap();
        let cpu = Cpu::new(Isa::detect(), Pool::new(2).unwrap(), shape, weights, BLOCKS, 128);
        let limits = Limits { step_tokens: 16, running: 3, waiting: 4 };
        let scheduler = Scheduler::new(limits, BlockPool::new(BLOCKS, BLOCK_TOKENS));
        Engine::new(Box::new(cpu), scheduler, Arc::new(Tokenizer::read(&gguf).unwrap()))
    }

    fn job(prompt: u32, temperature: f32) -> (Job, Receiver<Event>) {
        let (events, receiver) = channel();
        let job = Job {
            prompt: (0..prompt).map(|i| 50 + (i + prompt) % 60).collect(),
            answer_max: 30,
            sampling: Sampling { temperature, top_p: 0.95, seed: prompt.into() },
            stops: Vec::new(),
            events,
            cancelled: Arc::new(AtomicBool::new(false)),
        };
        (job, receiver)
    }

    fn finish(engine: &mut Engine) {
        while !engine.scheduler.is_idle() {
            engine.drop_cancelled();
            engine.step();
        }
        assert_eq!(engine.scheduler.blocks_free(), BLOCKS as usize);
        assert!(engine.requests.is_empty());
    }

    #[test]
    fn answers_are_the_same_alone_and_in_any_company() {
        let jobs = [(3, 0.0), (40, 0.8), (17, 0.0), (55, 1.5), (1, 0.7)];
        let mut alone = Vec::new();
        for (prompt, temperature) in jobs {
            let mut engine = engine();
            let (job, events) = job(prompt, temperature);
            engine.start(job);
            finish(&mut engine);
            alone.push(events.iter().collect::<Vec<_>>());
        }
        assert!(alone.iter().all(|events| matches!(events.last(), Some(Event::Done { .. }))));
        let mut engine = engine();
        let mut receivers = Vec::new();
        for (prompt, temperature) in jobs {
            let (job, events) = job(prompt, temperature);
            engine.start(job);
            engine.step();
            receivers.push(events);
        }
        finish(&mut engine);
        let together: Vec<Vec<_>> = receivers.iter().map(|r| r.iter().collect()).collect();
        assert_eq!(alone, together);
    }

    #[test]
    fn one_more_than_the_queue_holds_is_turned_away() {
        let mut engine = engine();
        let receivers: Vec<_> = (1..=6)
            .map(|prompt| {
                let (job, events) = job(prompt, 0.0);
                engine.start(job);
                events
            })
            .collect();
        let firsts: Vec<_> = receivers.iter().map(|r| r.recv().unwrap()).collect();
        assert_eq!(firsts[..4], [const { Event::Accepted }; 4]);
        assert_eq!(firsts[4..], [const { Event::Overloaded }; 2]);
        finish(&mut engine);
    }

    #[test]
    fn a_cancelled_request_leaves_at_the_next_step_and_says_no_more() {
        let mut engine = engine();
        let (waiting, running): (Vec<_>, Vec<_>) =
            (1..=4).map(|prompt| job(prompt * 9, 0.0)).partition(|(job, _)| job.prompt.len() > 27);
        let mut cancels = Vec::new();
        let mut receivers = Vec::new();
        for (job, events) in running.into_iter().chain(waiting) {
            cancels.push(Arc::clone(&job.cancelled));
            receivers.push(events);
            engine.start(job);
        }
        engine.step();
        // One that runs, by its flag; one that waits, by its flag; one by its receiver.
        cancels[0].store(true, Ordering::Relaxed);
        cancels[3].store(true, Ordering::Relaxed);
        drop(receivers.remove(1));
        engine.drop_cancelled();
        assert_eq!(engine.requests.len(), 2);
        finish(&mut engine);
        assert!(receivers[0].iter().all(|event| !matches!(event, Event::Done { .. })));
        assert!(receivers[1].iter().any(|event| matches!(event, Event::Done { .. })));
        assert_eq!(receivers[2].iter().collect::<Vec<_>>(), [Event::Accepted]);
    }

    #[test]
    fn nothing_of_an_ended_request_stays_in_the_cache() {
        let mut engine = engine();
        let first = |engine: &mut Engine| {
            let (job, events) = job(20, 0.0);
            engine.start(job);
            finish(engine);
            events.iter().collect::<Vec<_>>()
        };
        let fresh = first(&mut engine);
        let (other, _events) = job(55, 1.0);
        engine.start(other);
        finish(&mut engine);
        assert_eq!(first(&mut engine), fresh);
    }
}
