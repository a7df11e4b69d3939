//! How messages become bytes and back: prost's encoding. Tonic's own codec has 8 KiB ready for each message, of which most take a few hundred bytes, and lets larger
//! buffers grow step by step.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// What is made ready for a message to send: most answers fit, with a value or two.
const SENT: usize = 512;
/// And for one that comes: tonic has room for it twice. It may not be 0, by which compressed messages would be divided.
const TAKEN: usize = 1024;
/// Messages of a stream up to this many bytes are sent together, if they are ready anyway.
const YIELD_AT: usize = 32 << 10;

/// The generated clients and servers ask for it by this name.
pub(crate) struct ApiCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ApiCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for ApiCodec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ApiEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ApiEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(TAKEN, YIELD_AT))
    }
}

pub(crate) struct ApiEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for ApiEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // A buffer that grows step by step would be copied several times, and in the end take up to twice as much as the message.
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(SENT, YIELD_AT)
    }
}
