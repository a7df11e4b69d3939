//! What is simulated: the user's state machine, how it is spoken to, and what it should do.

use bytes::Bytes;

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
    /// The state machine. It starts empty at each start of a node, and gets all commands again.
    type Machine: StateMachine;
    /// What a reader looks at: most often a reference to the data that it shares with the machine.
    type View: Send + Sync + 'static;
    /// What operations should do.
    type Model: Model<Op: Send, Ret: Send>;

    /// A model for the check of one run.
    fn model(&self) -> Self::Model;

    /// An empty machine, and its view.
    fn start(&self) -> (Self::Machine, Self::View);

    /// What a client might do next. Few keys and many collisions find most.
    fn random_op(&self, random: &mut Random) -> OpOf<Self>;

    /// The command that carries out an operation; none if it is a read.
    fn command(&self, op: &OpOf<Self>) -> Option<Bytes>;

    /// What the machine's answer to that command means.
    fn answer(&self, op: &OpOf<Self>, answer: &Bytes) -> RetOf<Self>;

    /// What a reader finds, on a node that is fresh enough to be read.
    fn look(&self, view: &Self::View, op: &OpOf<Self>) -> RetOf<Self>;
}
