//! What is simulated: the user's state machine, how it is spoken to, and what it should do.

use bytes::Bytes;

use super::stores::{Disk, Site};
use crate::error::Fatal;
use crate::testing::Random;
use crate::testing::linearizability::Model;
use crate::traits::StateMachine;

/// An operation of the model of a subject.
pub type OpOf<S> = <<S as Subject>::Model as Model>::Op;
/// What an operation of the model of a subject returns.
pub type RetOf<S> = <<S as Subject>::Model as Model>::Ret;

/// A state machine to simulate, with a model that it is checked against.
///
/// The model says what a client may be told; the machine is what is replicated. Clients of the simulation draw operations with
/// [`Subject::random_op`], write those that have a [`Subject::command`], and read the others; every answer has to be explained by the model.
pub trait Subject: Send + Sync + 'static {
    /// The state machine. It starts empty at each start of a node, and gets all commands again, unless it [is durable](Subject::is_durable).
    type Machine: StateMachine;
    /// What a reader looks at: most often a reference to the data that it shares with the machine.
    type View: Send + Sync + 'static;
    /// What operations should do.
    type Model: Model<Op: Send, Ret: Send>;

    /// A model for the check of one run.
    fn model(&self) -> Self::Model;

    /// An empty machine, and its view.
    fn start(&self) -> (Self::Machine, Self::View);

    /// Whether machines are durable by themselves, with what they keep on the node's disk. Otherwise the simulation takes some of them for
    /// durable now and then, and keeps what they were given for them.
    fn is_durable(&self) -> bool {
        false
    }

    /// A machine that goes on with what it keeps on the node's disk, and its view. [`Subject::start`] is still asked for a machine that others are
    /// compared with.
    ///
    /// # Errors
    /// It does not open. A simulation takes this for right after a fault that explains it.
    fn start_on(&self, site: &Site, disk: Option<Disk>) -> Result<(Self::Machine, Self::View), Fatal> {
        let _ = (site, disk);
        Ok(self.start())
    }

    /// Whether a machine that stops with this says that what it keeps is damaged, and is to be moved away ([`Stores::move_away`](super::Stores::move_away)).
    fn is_damage(&self, fatal: &Fatal) -> bool {
        let _ = fatal;
        false
    }

    /// A number that stands for everything that a machine holds: machines that were given the same commands have the same. None where this can't be
    /// said, as by default. Machines that go on with what they kept must have the one of a machine that was given everything up to there.
    fn fingerprint(&self, view: &Self::View) -> Option<u64> {
        let _ = view;
        None
    }

    /// What a client might do next. Few keys and many collisions find most.
    fn random_op(&self, random: &mut Random) -> OpOf<Self>;

    /// The command that carries out an operation; none if it is a read.
    fn command(&self, op: &OpOf<Self>) -> Option<Bytes>;

    /// What the machine's answer to that command means.
    fn answer(&self, op: &OpOf<Self>, answer: &Bytes) -> RetOf<Self>;

    /// What a reader finds, on a node that is fresh enough to be read.
    fn look(&self, view: &Self::View, op: &OpOf<Self>) -> RetOf<Self>;

    /// The same where reading may fail: none if it does, as in a machine that is about to stop its node.
    fn try_look(&self, view: &Self::View, op: &OpOf<Self>) -> Option<RetOf<Self>> {
        Some(self.look(view, op))
    }
}
