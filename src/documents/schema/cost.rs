//! How much a JSON Schema may cost, known before it is compiled.
//!
//! Two references where one would do double the work, and n levels of that double it n times: a schema of a kilobyte
//! can ask for more steps than there are. And one that refers to itself can need any depth of stack. So the schema is
//! walked once as a graph, and for each of the levels that a document may have two numbers are worked out: how many
//! of its parts are applied to one value on that level at most, and how many of them nest.
//!
//! Parts that are alternatives of each other (one value has one name, one place) count as the costliest of them.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::documents::{MAX_DEPTH, error::excerpt};

/// Refuses a schema that could cost too much, or that is not followed here.
pub(super) fn bound(schema: &Value) -> Result<Bounded<'_>, String> {
    let mut graph = Graph {
        root: schema,
        sources: Vec::new(),
        known: HashMap::new(),
        patterns: Patterns::default(),
    };
    let _root = graph.number(schema);
    let mut parts = Vec::new();
    while let Some(&source) = graph.sources.get(parts.len()) {
        parts.push(graph.follow(source)?);
    }
    let order = in_place_order(&parts)?;
    let mut below = vec![Cost::default(); parts.len()];
    for level in 0..=MAX_DEPTH {
        let own = u64::from(level == 0);
        let mut here = vec![Cost::default(); parts.len()];
        for &part in &order {
            here[part] = parts[part].cost(own, &here, &below);
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
        patterns: graph.patterns,
    })
}

/// What a schema that may be compiled can cost.
#[derive(Debug)]
pub(super) struct Bounded<'a> {
    /// How many parts are applied to a value itself at most, each part's own included.
    pub(super) in_place: u64,
    pub(super) patterns: Patterns<'a>,
}

/// A bound on the cost of applying a part to a value.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    /// How many parts are applied to any one value that lies so many levels below.
    applied: u64,
    /// How many parts lie in one another on the way there.
    nested: u64,
}

impl Cost {
    /// Both are applied.
    fn and(self, other: Self) -> Self {
        Self {
            applied: self.applied.saturating_add(other.applied),
            nested: self.nested.max(other.nested),
        }
    }

    /// One of the two is.
    fn or(self, other: Self) -> Self {
        Self {
            applied: self.applied.max(other.applied),
            nested: self.nested.max(other.nested),
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
    /// Whether it goes through its parts twice: once for what they say, once for what they leave over.
    twice: bool,
}

impl Subschema {
    fn cost(&self, own: u64, here: &[Cost], below: &[Cost]) -> Cost {
        let in_place = self.in_place.iter().map(|&part| here[part]);
        let inside = self.inside.iter().map(|alternatives| {
            let alternatives = alternatives.iter().map(|&part| below[part]);
            alternatives.fold(Cost::default(), Cost::or)
        });
        let all = in_place.chain(inside).fold(Cost::default(), Cost::and);
        let times = if self.twice { 2 } else { 1 };
        Cost {
            applied: all.applied.saturating_mul(times).saturating_add(own),
            nested: all.nested + 1,
        }
    }
}

/// The parts that were met so far.
struct Graph<'a> {
    root: &'a Value,
    /// By number, the root first.
    sources: Vec<&'a Value>,
    known: HashMap<*const Value, usize>,
    patterns: Patterns<'a>,
}

/// The patterns of a schema.
#[derive(Debug, Default)]
pub(super) struct Patterns<'a> {
    /// Those that texts are matched with.
    pub(super) texts: Vec<&'a str>,
    /// Those that the names of an object are matched with, together.
    pub(super) names: Vec<Vec<&'a str>>,
}

impl Patterns<'_> {
    fn count(&self) -> usize {
        self.texts.len() + self.names.iter().map(Vec::len).sum::<usize>()
    }
}

impl<'a> Graph<'a> {
    fn number(&mut self, source: &'a Value) -> usize {
        let Self { sources, known, .. } = self;
        *known.entry(source).or_insert_with(|| {
            sources.push(source);
            sources.len() - 1
        })
    }

    /// What a part applies.
    fn follow(&mut self, source: &'a Value) -> Result<Subschema, String> {
        let mut part = Subschema::default();
        // `true` and `false` apply nothing; what is no schema at all, the compiler refuses.
        let Some(object) = source.as_object() else {
            return Ok(part);
        };
        if !std::ptr::eq(source, self.root) && object.contains_key("$id") {
            return Err("\"$id\" stands on the top level alone".to_owned());
        }
        let mut members = Vec::new();
        let mut items = Vec::new();
        for (keyword, value) in object {
            match keyword.as_str() {
                "$ref" => {
                    let target = self.target(value)?;
                    part.in_place.push(self.number(target));
                }
                "$dynamicRef" | "$recursiveRef" => {
                    return Err(format!("{keyword:?} is not supported: use \"$ref\""));
                }
                "allOf" | "anyOf" | "oneOf" | "not" | "if" | "then" | "else" => {
                    part.in_place.extend(self.applied(value));
                }
                "dependentSchemas" | "dependencies" => part.in_place.extend(self.named(value)),
                "properties" => members.extend(self.named(value)),
                "additionalProperties" => members.extend(self.applied(value)),
                "unevaluatedProperties" => {
                    part.twice = true;
                    members.extend(self.applied(value));
                }
                "patternProperties" => {
                    let names = value.as_object().into_iter().flat_map(Map::keys);
                    self.patterns
                        .names
                        .push(names.map(|name| &**name).collect());
                    let matched = self.named(value).into_iter();
                    part.inside.extend(matched.map(|part| vec![part]));
                }
                "prefixItems" | "items" | "additionalItems" => items.extend(self.applied(value)),
                "unevaluatedItems" => {
                    part.twice = true;
                    items.extend(self.applied(value));
                }
                "propertyNames" | "contains" | "contentSchema" => {
                    part.inside.push(self.applied(value));
                }
                "pattern" => self.patterns.texts.extend(value.as_str()),
                known if APPLIES_NOTHING.contains(&known) => {}
                // No keyword that the draft knows. Whatever is in it counts as applied right here.
                _ => part.in_place.extend(self.applied(value)),
            }
        }
        part.inside.extend([members, items]);
        if self.patterns.count() > MAX_PATTERNS {
            return Err(format!("it has more than {MAX_PATTERNS} patterns"));
        }
        Ok(part)
    }

    /// The parts of a keyword that has one or a list of them.
    fn applied(&mut self, value: &'a Value) -> Vec<usize> {
        match value {
            Value::Array(list) => list.iter().map(|part| self.number(part)).collect(),
            part => vec![self.number(part)],
        }
    }

    /// The parts of a keyword that names each.
    fn named(&mut self, value: &'a Value) -> Vec<usize> {
        let members = value.as_object().into_iter().flat_map(Map::values);
        members.map(|part| self.number(part)).collect()
    }

    fn target(&self, reference: &Value) -> Result<&'a Value, String> {
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
        self.root
            .pointer(pointer)
            .ok_or_else(|| format!("\"$ref\": {shown:?} leads nowhere"))
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
        // A part and how many of its own were gone into. No recursion: there may be thousands in a row.
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

/// The keywords of the drafts that apply no part. What they cost is counted when a document is looked at.
const APPLIES_NOTHING: &[&str] = &[
    // What they hold is applied where it is referred to.
    "$defs",
    "definitions",
    // Assertions.
    "const",
    "dependentRequired",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
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
    "required",
    "type",
    "uniqueItems",
    // Annotations.
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
    "format",
    "readOnly",
    "title",
    "writeOnly",
];
/// How many parts may be applied to one value.
const MAX_APPLIED: u64 = 10_000;
/// How many parts may nest, for the stack.
const MAX_NESTED: u64 = 400;
/// How many patterns there may be, each of which takes memory.
const MAX_PATTERNS: usize = 100;
