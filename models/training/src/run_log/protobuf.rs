//! Messages of protocol buffers, field by field, as far as `TensorBoard`'s events need them.

/// A message under construction. Fields are written in the order of the calls.
#[derive(Clone, Default, Debug)]
pub(super) struct Message(Vec<u8>);

/// How a field's value is laid out.
#[derive(Clone, Copy, Debug)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

impl Message {
    /// An integer or an enumerator.
    pub(super) fn integer(mut self, field: u64, value: u64) -> Message {
        self.key(field, Wire::Varint);
        self.varint(value);
        self
    }

    /// A double.
    pub(super) fn double(mut self, field: u64, value: f64) -> Message {
        self.key(field, Wire::Fixed64);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A float.
    pub(super) fn float(mut self, field: u64, value: f32) -> Message {
        self.key(field, Wire::Fixed32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A string or bytes.
    pub(super) fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        self.key(field, Wire::Bytes);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    /// A message.
    pub(super) fn message(self, field: u64, value: &Message) -> Message {
        self.bytes(field, &value.0)
    }

    /// The bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn key(&mut self, field: u64, wire: Wire) {
        self.varint((field << 3) | wire as u64);
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
