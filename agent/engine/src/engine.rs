//! The loop: plan a step, compute it, sample, tell the requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use ipc::Finish;

use crate::answer::{Answer, Shown};
use crate::constraint::Constraint;
use crate::limits::CACHE_IDLE_S_MAX;
use crate::log;
use crate::model::{Compute, Row, forward};
use crate::sampler::{Logprobs, SampleError, Sampler, Sampling};
use crate::scheduler::{Plan, QueueFull, Scheduler};
use crate::sequence::{Partition, Sequence, SequenceId};
use crate::tokenizer::Tokenizer;

/// One request, checked: its prompt is not empty, and prompt and answer fit the context.
#[derive(Debug)]
pub struct Job {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer, at least 1.
    pub answer_max: usize,
    /// Whose request it is.
    pub partition: Partition,
    /// Lower goes first, and may take the place of a higher one.
    pub priority: u8,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The answer ends before the first of these.
    pub stops: Vec<String>,
    /// What the answer must be like.
    pub constraint: Option<Constraint>,
    /// If set, each token comes with its likelihood, and those of so many of the likeliest.
    pub logprobs: Option<usize>,
    /// Where events go: at most `answer_max + 2`, so the channel needs no bound of its own.
    pub events: Sender<Event>,
    /// Set by whoever waits for the events, once it no longer does.
    pub cancelled: Arc<AtomicBool>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It waits for its turn.
    Accepted,
    /// One more token.
    Token {
        /// The token.
        token: u32,
        /// How likely it was, if that was asked for.
        logprobs: Option<Logprobs>,
        /// What is certain now.
        shown: Shown,
    },
    /// The answer is complete.
    Done {
        /// What had been held back.
        shown: Shown,
        /// Why.
        finish: Finish,
        /// Tokens sampled, the one that ends the answer included.
        tokens: u32,
        /// Tokens of the prompt that were in the cache.
        cached: usize,
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

/// A token, and its likelihood if that was asked for.
type Sampled = (u32, Option<Logprobs>);

struct Request {
    sampler: Sampler,
    answer: Answer,
    logprobs: Option<usize>,
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
                match self.wait(jobs) {
                    Some(job) => self.start(job),
                    None => return,
                }
            }
            while let Ok(job) = jobs.try_recv() {
                self.start(job);
            }
            self.drop_cancelled();
            self.step();
        }
    }

    /// The next job. Nothing of earlier ones outlasts a long time without any.
    fn wait(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        match jobs.recv_timeout(Duration::from_secs(CACHE_IDLE_S_MAX)) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => self.forget(),
        }
        jobs.recv().ok()
    }

    fn forget(&mut self) {
        match self.scheduler.forget(&mut |block| self.compute.zero(block)) {
            Ok(()) => log::line(format_args!("the cache was zeroed: no request for a while")),
            Err(error) => log::line(format_args!("the cache was not zeroed: {error}")),
        }
    }

    fn start(&mut self, job: Job) {
        let id = SequenceId(self.next);
        self.next += 1;
        let (partition, priority) = (job.partition, job.priority);
        let sampler = Sampler::new(job.sampling, &job.prompt, job.constraint);
        let sequence = Sequence::new(id, partition, priority, job.prompt, job.answer_max);
        let event = match self.scheduler.enqueue(sequence) {
            Ok(()) => Event::Accepted,
            Err(QueueFull) => Event::Overloaded,
        };
        let accepted = event == Event::Accepted;
        // A receiver that is gone has set `cancelled`, which the next step sees.
        let sent = job.events.send(event).is_ok();
        if accepted {
            let request = Request {
                sampler,
                answer: Answer::new(job.stops),
                logprobs: job.logprobs,
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
        self.scheduler.apply(&plan, &mut |block| self.compute.zero(block));
        if let Some(id) = plan.fail {
            self.fail(id);
        }
        for (id, sampled) in self.compute(&plan) {
            self.advance(id, sampled);
        }
    }

    fn fail(&mut self, id: SequenceId) {
        let pool = self.scheduler.pool();
        let tokens = pool.total() * pool.block_tokens();
        if let Some(request) = self.requests.get(&id) {
            request.tell(Event::Failed(format!(
                "the request is longer than the whole cache, which has room for {tokens} tokens"
            )));
        }
        self.end(id);
    }

    /// Computes a plan; returns what was sampled.
    fn compute(&mut self, plan: &Plan) -> Vec<(SequenceId, Result<Sampled, SampleError>)> {
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
            let sampled = request
                .sampler
                .sample(logits)
                .map(|token| (token, request.logprobs.map(|top| Logprobs::of(logits, token, top))));
            Some((id, sampled))
        };
        sampled.into_iter().zip(rows).filter_map(choose).collect()
    }

    fn advance(&mut self, id: SequenceId, sampled: Result<Sampled, SampleError>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let (token, logprobs) = match sampled {
            Ok(sampled) => sampled,
            Err(error) => {
                request.tell(Event::Failed(error.to_string()));
                return self.end(id);
            }
        };
        request.tokens += 1;
        let ended = self.tokenizer.is_end(token);
        let shown =
            if ended { Shown::default() } else { request.answer.push(token, &self.tokenizer) };
        request.tell(Event::Token { token, logprobs, shown });
        let room = self.scheduler.append(id, token);
        let finish = if ended || request.answer.stopped() {
            Finish::Stop
        } else if !room {
            Finish::Length
        } else {
            return;
        };
        // The held-back end may complete a stop string no more: it was looked for at each push.
        let shown = request.answer.finish();
        let cached = self.scheduler.running(id).and_then(|sequence| sequence.cached).unwrap_or(0);
        request.tell(Event::Done { shown, finish, tokens: request.tokens, cached });
        self.end(id);
    }

    fn end(&mut self, id: SequenceId) {
        self.requests.remove(&id);
        self.scheduler.remove(id);
    }
}

impl Request {
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
mod invariance;

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

    /// An engine with the synthetic model with all formats, or one of the families; their context is 128 tokens.
    pub(super) fn engine_of(case: &str, isa: Isa, threads: usize, blocks: u32) -> Engine {
        let bytes = match case {
            "formats" => synthetic::model().build(),
            case => synthetic::families::quantised(case).build(),
        };
        let gguf = Gguf::parse(&bytes).unwrap();
        let shape = Shape::read(&gguf).unwrap();
        let weights = Weights::find(&gguf, &shape, Arc::new(bytes.clone())).unwrap();
        let cpu = Cpu::new(isa, Pool::new(threads).unwrap(), shape, weights, blocks, 128);
        let limits = Limits { step_tokens: 16, running: 3, waiting: 4, waiting_per_partition: 4 };
        let scheduler = Scheduler::new(limits, BlockPool::new(blocks, BLOCK_TOKENS));
        Engine::new(Box::new(cpu), scheduler, Arc::new(Tokenizer::read(&gguf).unwrap()))
    }

    fn engine() -> Engine {
        engine_of("formats", Isa::detect(), 2, BLOCKS)
    }

    fn job(prompt: u32, temperature: f32) -> (Job, Receiver<Event>) {
        let (events, receiver) = channel();
        let job = Job {
            prompt: (0..prompt).map(|i| 50 + (i + prompt) % 60).collect(),
            answer_max: 30,
            partition: Partition::from("bank"),
            priority: 0,
            sampling: Sampling {
                temperature,
                top_p: 0.95,
                seed: prompt.into(),
                ..Sampling::default()
            },
            stops: Vec::new(),
            constraint: None,
            logprobs: Some(3),
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
        assert_eq!(engine.scheduler.pool().free(), BLOCKS as usize);
        assert!(engine.requests.is_empty());
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
    fn what_is_forgotten_is_not_found_again() {
        let mut engine = engine();
        let cached = |engine: &mut Engine| {
            let (job, events) = job(40, 0.0);
            engine.start(job);
            finish(engine);
            match events.iter().last() {
                Some(Event::Done { cached, .. }) => cached,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([cached(&mut engine), cached(&mut engine)], [0, 32]);
        engine.forget();
        assert_eq!(cached(&mut engine), 0);
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
}
