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
