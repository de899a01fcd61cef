//! How much a JSON Schema may cost, known before it is compiled.
//!
//! Two references where one would do double the work, and n levels of that double it n times: a
//! schema of a kilobyte can ask for more steps than there are. And one that refers to itself can
//! need any depth of stack. So the schema is walked once as a graph, and for each of the levels
//! that a document may have two numbers are worked out: how many of its parts are applied to one
//! value on that level at most, and how many of them nest.
//!
//! Parts that are alternatives of each other (one value has one name, one place) count as the
//! costliest of them.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::pattern::Patterns;
use super::weight::{self, segment};
use crate::documents::{MAX_DEPTH, error::excerpt};

/// Refuses a schema that could cost too much, or that is not followed here.
pub(super) fn bound(schema: &Value) -> Result<Bounded<'_>, String> {
    let mut graph = Graph {
        root: schema,
        sources: Vec::new(),
        known: HashMap::new(),
        patterns: Patterns::default(),
        longest_text: 0,
        largest_copy: 0,
        divides_finely: false,
    };
    let _root = graph.number(schema, 0);
    let mut parts = Vec::new();
    while let Some(&source) = graph.sources.get(parts.len()) {
        parts.push(graph.follow(source)?);
    }
    let order = in_place_order(&parts)?;
    let bytes = bytes(&parts, &order);
    if bytes > weight::MAX_BYTES {
        return Err(format!(
            "compiled it could take more than {} MiB: use shorter names above many parts, less in \"not\", and \"unevaluatedProperties\" and \"unevaluatedItems\" beside fewer parts",
            weight::MAX_BYTES >> 20
        ));
    }
    let mut below = vec![Cost::default(); parts.len()];
    for level in 0..=MAX_DEPTH {
        let own = u64::from(level == 0);
        let mut here = vec![Cost::default(); parts.len()];
        for &part in &order {
            here[part] = parts[part].cost(own, &here, &below, &graph.sources);
        }
        if here[0].applied > MAX_APPLIED {
            return Err(format!(
                "it could apply more than {MAX_APPLIED} of its parts to one value of a document: use fewer combinations, above all in parts that refer to themselves"
            ));
        }
        if here[0].nested > MAX_NESTED {
            return Err(format!(
                "more than {MAX_NESTED} of its parts could nest in one another: use fewer references in a row"
            ));
        }
        below = here;
    }
    let mut in_place = vec![0_u64; parts.len()];
    for &part in &order {
        let Subschema {
            in_place: own,
            twice,
            ..
        } = &parts[part];
        let all = own.iter().map(|&part| in_place[part]);
        let all = all.fold(1, u64::saturating_add);
        in_place[part] = all.saturating_mul(if *twice { 2 } else { 1 });
    }
    Ok(Bounded {
        in_place: in_place.into_iter().max().unwrap_or(1),
        bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        // The way is in an error up to three times while it is made.
        error_bytes: 3 * below[0].way + graph.longest_text + graph.largest_copy,
        divides_finely: graph.divides_finely,
        patterns: graph.patterns,
    })
}

/// No less than all parts take, compiled.
fn bytes(parts: &[Subschema], order: &[usize]) -> u64 {
    // What is evaluated beside a part is compiled once more for it, with all that is applied there.
    let mut in_place = vec![0_u64; parts.len()];
    let mut all = weight::LEAST;
    for &part in order {
        let Subschema {
            bytes,
            in_place: own,
            twice,
            ..
        } = &parts[part];
        let below = own.iter().map(|&part| in_place[part]);
        in_place[part] = below.fold(*bytes, u64::saturating_add);
        let again = if *twice {
            in_place[part].saturating_mul(2)
        } else {
            0
        };
        all = all.saturating_add(*bytes).saturating_add(again);
    }
    // What is referred to may be compiled twice: as a part, and for those that refer to it.
    if parts.iter().any(|part| part.refers) {
        all = all.saturating_mul(2);
    }
    all
}

/// What a schema that may be compiled can cost.
#[derive(Debug)]
pub(super) struct Bounded<'a> {
    /// How many parts are applied to a value itself at most, each part's own included.
    pub(super) in_place: u64,
    /// No less than it takes once compiled, its patterns apart.
    pub(super) bytes: usize,
    /// How much of the schema an error holds at most.
    pub(super) error_bytes: u64,
    /// Whether a `multipleOf` is so small that each division takes a fraction of many bits.
    pub(super) divides_finely: bool,
    pub(super) patterns: Patterns<'a>,
}

/// A bound on the cost of applying a part to a value.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    /// How many parts are applied to any one value that lies so many levels below.
    applied: u64,
    /// How many parts lie in one another on the way there.
    nested: u64,
    /// How long the way there is as a JSON pointer, with all references on it.
    way: u64,
}

impl Cost {
    /// Both are applied.
    fn and(self, other: Self) -> Self {
        Self {
            applied: self.applied.saturating_add(other.applied),
            nested: self.nested.max(other.nested),
            way: self.way.max(other.way),
        }
    }

    /// One of the two is.
    fn or(self, other: Self) -> Self {
        Self {
            applied: self.applied.max(other.applied),
            nested: self.nested.max(other.nested),
            way: self.way.max(other.way),
        }
    }
}

/// A part of the schema that is a schema itself; others by their numbers.
#[derive(Debug, Default)]
struct Subschema {
    /// Applied to the same value.
    in_place: Vec<usize>,
    /// Applied to what is in the value: one of each list to one of its values, and all lists.
    inside: Vec<Vec<usize>>,
    /// Whether it goes through its parts twice: once for what they say, once for what they leave
    /// over.
    twice: bool,
    /// Whether it refers to another part.
    refers: bool,
    /// How long the JSON pointer to it is.
    pointer: u64,
    /// No less than it takes once compiled, without its parts.
    bytes: u64,
}

impl Subschema {
    fn cost(&self, own: u64, here: &[Cost], below: &[Cost], sources: &[Source<'_>]) -> Cost {
        // A part that is referred to may lie anywhere.
        let from_here = |part: usize, cost: Cost| Cost {
            way: cost.way + REFERENCE + sources[part].pointer.saturating_sub(self.pointer),
            ..cost
        };
        let in_place = self.in_place.iter();
        let in_place = in_place.map(|&part| from_here(part, here[part]));
        let inside = self.inside.iter().map(|alternatives| {
            let alternatives = alternatives.iter();
            let alternatives = alternatives.map(|&part| from_here(part, below[part]));
            alternatives.fold(Cost::default(), Cost::or)
        });
        let all = in_place.chain(inside).fold(Cost::default(), Cost::and);
        let times = if self.twice { 2 } else { 1 };
        Cost {
            applied: all.applied.saturating_mul(times).saturating_add(own),
            nested: all.nested + 1,
            // That of a keyword of its own is no longer than the longest name of one, or counted
            // with its value.
            way: all.way.max(LONGEST_KEYWORD),
        }
    }
}

/// A part as it is written, and how long the JSON pointer to it is.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    value: &'a Value,
    pointer: u64,
}

/// The parts that were met so far.
struct Graph<'a> {
    root: &'a Value,
    /// By number, the root first.
    sources: Vec<Source<'a>>,
    known: HashMap<*const Value, usize>,
    patterns: Patterns<'a>,
    /// The longest text, and the largest copy of a part, that an error holds.
    longest_text: u64,
    largest_copy: u64,
    divides_finely: bool,
}

impl<'a> Graph<'a> {
    fn number(&mut self, value: &'a Value, pointer: u64) -> usize {
        let Self { sources, known, .. } = self;
        *known.entry(value).or_insert_with(|| {
            sources.push(Source { value, pointer });
            sources.len() - 1
        })
    }

    /// What a part applies.
    fn follow(&mut self, source: Source<'a>) -> Result<Subschema, String> {
        let mut part = Subschema {
            pointer: source.pointer,
            bytes: weight::part(source.pointer),
            ..Subschema::default()
        };
        // `true` and `false` apply nothing; what is no schema at all, the compiler refuses.
        let Some(object) = source.value.as_object() else {
            return Ok(part);
        };
        if !std::ptr::eq(source.value, self.root) && object.contains_key("$id") {
            return Err("\"$id\" stands on the top level alone".to_owned());
        }
        let mut members = Vec::new();
        let mut items = Vec::new();
        let mut is_annotated = false;
        for (keyword, value) in object {
            let at = source.pointer + segment(keyword);
            part.bytes += weight::keyword(keyword, at);
            match keyword.as_str() {
                "$ref" => {
                    part.refers = true;
                    let (target, pointer) = self.target(value)?;
                    part.in_place.push(self.number(target, pointer));
                }
                "$dynamicRef" | "$recursiveRef" => {
                    return Err(format!("{keyword:?} is not supported: use \"$ref\""));
                }
                "not" => {
                    let copy = weight::copy(value);
                    part.bytes += copy;
                    self.largest_copy = self.largest_copy.max(copy);
                    part.in_place.extend(self.applied(value, at));
                }
                "allOf" | "anyOf" | "oneOf" | "if" | "then" | "else" => {
                    part.in_place.extend(self.applied(value, at));
                }
                "dependentSchemas" | "dependencies" => {
                    self.note_text(value);
                    part.in_place.extend(self.named(value, at, &mut part.bytes));
                }
                "properties" => members.extend(self.named(value, at, &mut part.bytes)),
                "additionalProperties" => members.extend(self.applied(value, at)),
                "unevaluatedProperties" => {
                    part.twice = true;
                    members.extend(self.applied(value, at));
                }
                "patternProperties" => {
                    let names = value.as_object().into_iter().flat_map(Map::keys);
                    let names = names.map(|name| &**name).collect();
                    self.patterns.of_names(names)?;
                    let matched = self.named(value, at, &mut part.bytes).into_iter();
                    part.inside.extend(matched.map(|part| vec![part]));
                }
                "prefixItems" | "items" | "additionalItems" => {
                    items.extend(self.applied(value, at));
                }
                "unevaluatedItems" => {
                    part.twice = true;
                    items.extend(self.applied(value, at));
                }
                "propertyNames" | "contains" => part.inside.push(self.applied(value, at)),
                "contentSchema" => {
                    part.bytes += weight::copy(value);
                    part.inside.push(self.applied(value, at));
                }
                // What they hold is applied where it is referred to.
                "$defs" | "definitions" => {}
                known if ASSERTIONS.contains(&known) => {
                    match (known, value) {
                        ("pattern", Value::String(pattern)) => self.patterns.of_text(pattern)?,
                        ("multipleOf", Value::Number(of)) => {
                            self.divides_finely |= of.as_f64().is_none_or(|of| of < LEAST_PLAIN);
                        }
                        _ => {}
                    }
                    self.note_text(value);
                    part.bytes += 2 * weight::copy(value);
                }
                other => {
                    is_annotated = true;
                    part.bytes += weight::copy(value);
                    // No keyword that the draft knows. Whatever is in it counts as applied right
                    // here.
                    if !ANNOTATIONS.contains(&other) {
                        part.in_place.extend(self.applied(value, at));
                    }
                }
            }
        }
        if is_annotated {
            part.bytes += weight::MAP_NODE;
        }
        part.inside.extend([members, items]);
        Ok(part)
    }

    /// Notes the texts that an error may hold.
    fn note_text(&mut self, value: &Value) {
        self.longest_text = self.longest_text.max(weight::longest_text(value));
    }

    /// The parts of a keyword that has one or a list of them.
    fn applied(&mut self, value: &'a Value, at: u64) -> Vec<usize> {
        match value {
            Value::Array(list) => {
                let list = list.iter();
                list.map(|part| self.number(part, at + weight::INDEX))
                    .collect()
            }
            part => vec![self.number(part, at)],
        }
    }

    /// The parts of a keyword that names each. What the names take is added.
    fn named(&mut self, value: &'a Value, at: u64, bytes: &mut u64) -> Vec<usize> {
        *bytes += weight::names(value);
        let members = value.as_object().into_iter().flatten();
        members
            .map(|(name, part)| self.number(part, at + segment(name)))
            .collect()
    }

    fn target(&self, reference: &Value) -> Result<(&'a Value, u64), String> {
        let text = reference.as_str().unwrap_or_default();
        let shown = excerpt(text);
        let pointer = text.strip_prefix('#').ok_or_else(|| {
            format!("\"$ref\": {shown:?} leads out of the schema, and nothing is fetched: put what it means under \"$defs\"")
        })?;
        if pointer.contains('%') || !(pointer.is_empty() || pointer.starts_with('/')) {
            return Err(format!(
                "\"$ref\": {shown:?} is not supported: write \"#\" or \"#/$defs/…\", without anchors and '%'"
            ));
        }
        let target = self.root.pointer(pointer);
        let target = target.ok_or_else(|| format!("\"$ref\": {shown:?} leads nowhere"))?;
        // A `~` that needs no escape is written with one elsewhere.
        let escapes = pointer.bytes().filter(|byte| *byte == b'~').count();
        Ok((target, (pointer.len() + escapes) as u64))
    }
}

/// The parts, each after those that it applies to the same value.
fn in_place_order(parts: &[Subschema]) -> Result<Vec<usize>, String> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }

    let mut order = Vec::with_capacity(parts.len());
    let mut marks = vec![Mark::New; parts.len()];
    for start in 0..parts.len() {
        // A part and how many of its own were gone into. No recursion: there may be thousands in a
        // row.
        let mut way = vec![(start, 0)];
        while let Some((part, gone)) = way.pop() {
            if marks[part] == Mark::Done {
                continue;
            }
            marks[part] = Mark::Open;
            match parts[part].in_place.get(gone) {
                Some(&next) if marks[next] == Mark::Open => {
                    return Err(
                        "a part refers to itself without going into a value: it would never end"
                            .to_owned(),
                    );
                }
                Some(&next) => way.extend([(part, gone + 1), (next, 0)]),
                None => {
                    marks[part] = Mark::Done;
                    order.push(part);
                }
            }
        }
    }
    Ok(order)
}

/// The keywords of the drafts that apply no part. What they cost is counted when a document is
/// looked at.
const ASSERTIONS: &[&str] = &[
    "const",
    "dependentRequired",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "pattern",
    "required",
    "type",
    "uniqueItems",
];
/// Those that say nothing of a document.
const ANNOTATIONS: &[&str] = &[
    "$anchor",
    "$comment",
    "$dynamicAnchor",
    "$id",
    "$schema",
    "$vocabulary",
    "contentEncoding",
    "contentMediaType",
    "default",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];
/// What a reference adds to a way: `/$ref`, and what a keyword of a part adds besides.
const REFERENCE: u64 = 16;
/// `unevaluatedProperties`, the longest keyword that may fail.
const LONGEST_KEYWORD: u64 = 24;
/// A `multipleOf` from here on is divided by without fractions of many bits.
const LEAST_PLAIN: f64 = 1e-9;
/// How many parts may be applied to one value.
const MAX_APPLIED: u64 = 10_000;
/// How many parts may nest, for the stack.
const MAX_NESTED: u64 = 400;
