//! A document as a JSON Schema sees it, with a count of what is looked at.
//!
//! The validator sees a document through [`Metered`] alone, so whatever a keyword does with it
//! takes steps, also a keyword that nobody here thought of. When the steps are used up the
//! validator is left at once by unwinding: it keeps nothing between documents that could be left
//! half done.

use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object};
use serde_json::{Map, Number, Value, map};

/// What a schema makes a look at a part of a document cost, in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rates {
    /// To go into a value: parts of the schema that look at nothing are passed there, too.
    pub(super) value: u64,
    /// To go over a name, for each [`NAME_BYTES`] of it: each pattern for names is matched with
    /// it.
    pub(super) name: u64,
    /// To read a text, for each [`TEXT_BYTES`] of it: a pattern may be matched with it.
    pub(super) text: u64,
    /// To look at a number.
    pub(super) number: u64,
    /// To make an error, a step for each byte that it may take. `None`: none is made.
    pub(super) error: Option<u64>,
}

/// The steps were used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent;

/// Does work that looks at documents in so many steps, or leaves it.
pub(super) fn within<R>(steps: u64, rates: Rates, work: impl FnOnce() -> R) -> Result<R, Spent> {
    LEFT.set(steps);
    RATES.set(rates);
    catch_unwind(AssertUnwindSafe(work)).map_err(|reason| {
        if reason.is::<Spent>() {
            Spent
        } else {
            resume_unwind(reason)
        }
    })
}

impl Rates {
    /// The same for a pass that makes errors: one may hold the longest path of the document,
    /// escaped, and `of_schema` bytes.
    pub(super) fn with_errors(self, document: &Value, of_schema: u64) -> Self {
        let bytes = PER_ERROR + longest_path(document) + of_schema;
        Self {
            error: Some(bytes),
            ..self
        }
    }
}

/// No less than the longest JSON pointer into a value takes.
fn longest_path(value: &Value) -> u64 {
    match value {
        Value::Array(items) => {
            let below = items.iter().map(longest_path).max();
            below.map_or(0, |below| below + INDEX_BYTES)
        }
        Value::Object(members) => {
            // Escaped, a character of a name takes two bytes at most.
            let below = members
                .iter()
                .map(|(name, value)| 1 + 2 * name.len() as u64 + longest_path(value));
            below.max().unwrap_or(0)
        }
        _ => 0,
    }
}

fn charge(steps: u64) {
    match LEFT.get().checked_sub(steps) {
        Some(left) => LEFT.set(left),
        // No panic: no hook is called, and nothing is logged.
        None => resume_unwind(Box::new(Spent)),
    }
}

fn charge_bytes(bytes: usize, each: usize, rate: u64) {
    charge((bytes / each) as u64 * rate);
}

/// The representation of documents that counts.
#[derive(Debug)]
pub(super) enum Counting {}

/// A value of a document that is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metered<'a>(pub(super) &'a Value);

impl Json for Counting {
    type Node<'a> = Metered<'a>;
    type PreparedKey = String;
    type StringBuffer = Value;

    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>(
        buffer: &mut Value,
        string: &str,
        f: impl FnOnce(Metered<'_>) -> T,
    ) -> T {
        charge(RATES.get().value);
        *buffer = Value::from(string);
        f(Metered(buffer))
    }
}

impl<'a> Node<'a, Counting> for Metered<'a> {
    type Object = MeteredObject<'a>;
    type Array = MeteredArray<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<MeteredObject<'a>> {
        charge(1);
        self.0.as_object().map(MeteredObject)
    }

    fn as_array(&self) -> Option<MeteredArray<'a>> {
        charge(1);
        self.0.as_array().map(|items| MeteredArray(items))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        charge(1);
        let text = self.0.as_str()?;
        charge_bytes(text.len(), TEXT_BYTES, RATES.get().text);
        Some(Cow::Borrowed(text))
    }

    fn as_number(&self) -> Option<&'a Number> {
        charge(RATES.get().number);
        let number = self.0.as_number()?;
        if !is_plain(number) {
            charge(PER_FRACTION);
        }
        Some(number)
    }

    fn as_boolean(&self) -> Option<bool> {
        charge(1);
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        charge(1);
        self.0.is_null()
    }

    fn json_type(&self) -> JsonType {
        charge(1);
        match self.0 {
            Value::Null => JsonType::Null,
            Value::Bool(_) => JsonType::Boolean,
            Value::Number(_) => JsonType::Number,
            Value::String(_) => JsonType::String,
            Value::Array(_) => JsonType::Array,
            Value::Object(_) => JsonType::Object,
        }
    }

    fn string_length(&self) -> Option<u64> {
        charge(1);
        let text = self.0.as_str()?;
        charge_bytes(text.len(), TEXT_BYTES, 1);
        Some(text.chars().count() as u64)
    }

    fn equals_value(&self, expected: &Value) -> bool {
        compare(self.0, expected) == Ordering::Equal
    }

    /// Called to make an error. It gets no value: those of `anyOf` would each hold a copy of it,
    /// and none is shown.
    fn to_value(&self) -> Cow<'a, Value> {
        charge(RATES.get().error.unwrap_or(1));
        Cow::Owned(Value::Null)
    }

    /// Called to remember a verdict, which takes memory.
    fn identity(&self) -> Option<NodeIdentity> {
        charge(PER_IDENTITY);
        Some(NodeIdentity::new(std::ptr::from_ref(self.0).addr()))
    }
}

/// An object that is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct MeteredObject<'a>(&'a Map<String, Value>);

impl<'a> Object<'a, Counting> for MeteredObject<'a> {
    type Node = Metered<'a>;
    type MemberName = &'a str;
    type MembersIter = Members<'a>;

    fn len(&self) -> usize {
        charge(1);
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Metered<'a>> {
        // A search among n names compares with log n of them.
        charge(2 + u64::from(self.0.len().checked_ilog2().unwrap_or(0)) / 2);
        let found = self.0.get(key)?;
        charge_bytes(key.len(), TEXT_BYTES, 1);
        charge(RATES.get().value);
        Some(Metered(found))
    }

    fn members(&self) -> Members<'a> {
        charge(1);
        Members(self.0.iter())
    }
}

/// The members of an object, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Members<'a>(map::Iter<'a>);

impl<'a> Iterator for Members<'a> {
    type Item = (&'a str, Metered<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.0.next()?;
        let rates = RATES.get();
        charge(rates.value + rates.name);
        charge_bytes(name.len(), NAME_BYTES, rates.name);
        // An error may list the names that nothing allows.
        if rates.error.is_some() {
            charge(PER_NAME_IN_ERROR + name.len() as u64);
        }
        Some((name, Metered(value)))
    }
}

/// An array that is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct MeteredArray<'a>(&'a [Value]);

impl<'a> Array<'a, Counting> for MeteredArray<'a> {
    type Node = Metered<'a>;
    type ElementsIter = Elements<'a>;

    fn len(&self) -> usize {
        charge(1);
        self.0.len()
    }

    fn elements(&self) -> Elements<'a> {
        charge(1);
        Elements(self.0.iter())
    }

    /// By sorting: the crate's way is by hashes that a client can make equal.
    fn is_unique(&self) -> bool {
        charge(1 + self.0.len() as u64);
        let mut sorted: Vec<&Value> = self.0.iter().collect();
        sorted.sort_unstable_by(|left, right| compare(left, right));
        let alike = |pair: &[&Value]| compare(pair[0], pair[1]) == Ordering::Equal;
        !sorted.windows(2).any(alike)
    }
}

/// The elements of an array, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Elements<'a>(std::slice::Iter<'a, Value>);

impl<'a> Iterator for Elements<'a> {
    type Item = Metered<'a>;

    fn next(&mut self) -> Option<Metered<'a>> {
        let value = self.0.next()?;
        charge(RATES.get().value);
        Some(Metered(value))
    }
}

/// An order of values, in which those are equal that JSON Schema calls equal.
fn compare(left: &Value, right: &Value) -> Ordering {
    charge(1);
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right),
        (Value::String(left), Value::String(right)) => compare_texts(left, right),
        (Value::Array(left), Value::Array(right)) => {
            let elements = || {
                left.iter()
                    .zip(right)
                    .map(|(left, right)| compare(left, right))
            };
            let lengths = left.len().cmp(&right.len());
            lengths.then_with(|| first_difference(elements()))
        }
        (Value::Object(left), Value::Object(right)) => {
            let members = || {
                let pairs = left.iter().zip(right);
                pairs.map(|((name, left), (other, right))| {
                    compare_texts(name, other).then_with(|| compare(left, right))
                })
            };
            let lengths = left.len().cmp(&right.len());
            lengths.then_with(|| first_difference(members()))
        }
        (left, right) => rank(left).cmp(&rank(right)),
    }
}

fn first_difference(mut parts: impl Iterator<Item = Ordering>) -> Ordering {
    parts.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn compare_texts(left: &str, right: &str) -> Ordering {
    charge_bytes(left.len().min(right.len()), TEXT_BYTES, 1);
    left.cmp(right)
}

/// By value: `1` and `1.0` are equal, and integers that one double stands for are not.
fn compare_numbers(left: &Number, right: &Number) -> Ordering {
    let near = |number: &Number| number.as_f64().unwrap_or_default() + 0.0;
    let exact = |number: &Number| {
        let integer = number.as_i64().map(i128::from);
        let integer = integer.or_else(|| number.as_u64().map(i128::from));
        // A double is cut off to an integer; of two with one value that is the same.
        integer.unwrap_or_else(|| near(number) as i128)
    };
    let order = near(left).total_cmp(&near(right));
    order.then_with(|| exact(left).cmp(&exact(right)))
}

/// Whether a number is divided without fractions of many bits.
fn is_plain(number: &Number) -> bool {
    let size = number.as_f64().unwrap_or_default().abs();
    size == 0.0 || (1e-15..=1e15).contains(&size)
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static RATES: Cell<Rates> = const { Cell::new(Rates { value: 1, name: 1, text: 1, number: PER_NUMBER, error: None }) };
}

/// How much of a name one unit of [`Rates::name`] is for.
pub(super) const NAME_BYTES: usize = 8;
/// How much of a text one step, or one unit of [`Rates::text`], is for.
pub(super) const TEXT_BYTES: usize = 16;
/// An error without what it holds of the document and of the schema takes about half a kilobyte.
const PER_ERROR: u64 = 1000;
/// A name in a list of names, without its text.
const PER_NAME_IN_ERROR: u64 = 64;
/// `multipleOf` divides exactly.
pub(super) const PER_NUMBER: u64 = 4;
/// The same with fractions of a thousand bits, which very large and very small numbers become: 2
/// µs.
pub(super) const PER_FRACTION: u64 = 128;
/// A slash and the number of an item.
const INDEX_BYTES: u64 = 8;
/// A verdict that is remembered takes some tens of bytes.
const PER_IDENTITY: u64 = 16;
