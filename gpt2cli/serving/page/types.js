/**
 * The shapes that modules share. Nothing is computed here.
 *
 * @typedef {object} Named A token: its id and what it says.
 * @property {number} id Negative for text that was typed and is no token yet, for a moment.
 * @property {string} text Its characters; a part of a character is shown as U+FFFD.
 * @property {string} [bytes] Its bytes in base64, where `text` does not say them.
 *
 * @typedef {object} Judged What the model thought of a token at its place.
 * @property {number | null} logprob In nats; null for the first token, which nothing predicts.
 * @property {number | null} rank 1 is the most probable.
 * @property {(Named & {logprob: number})[]} top The most probable ones, best first.
 *
 * @typedef {Named & Partial<Judged>} Token A token of a text; not judged yet where it was typed.
 *
 * @typedef {object} Branch A stretch of tokens without a fork, after all those of its parent.
 * @property {string} id
 * @property {string | null} parent
 * @property {readonly Token[]} tokens
 * @property {string} name Given by the person; empty for none.
 * @property {Origin | null} origin How its text came to be; null if it was typed.
 *
 * @typedef {object} Origin What repeats a text that a model wrote.
 * @property {number} seed
 * @property {number} sample Which of the `n` continuations.
 * @property {Record<string, unknown>} settings Fields of the request besides its prompt.
 * @property {Record<string, unknown>} facts The model, precision, version that wrote it.
 * @property {string | null} finish Why it has ended; null if it was stopped.
 * @property {number} [offset] Tokens of the same continuation before these, in its ancestors.
 *
 * @typedef {object} Tree All texts of a page: branches by id, and the leaf whose path is shown.
 * @property {Readonly<Record<string, Branch>>} branches
 * @property {string} leaf
 *
 * @typedef {object} Settings How texts are continued: fields of `/v1/completions`; null is off.
 * @property {number} n
 * @property {number} max_tokens
 * @property {number | null} seed null draws a new one each time.
 * @property {string[]} stop
 * @property {Record<string, number | null>} sampling temperature, top_k, … by their names.
 * @property {{kind: "regex" | "choice" | "json_schema", value: string} | null} constraint
 *
 * @typedef {object} Plan Interventions, as `Interventions.of` takes them.
 * @property {string[]} ablate Such as "5.6", "mlp.3", "attention.2", "layer.1", "position.0".
 * @property {"zero" | "mean"} ablate_with
 * @property {string | null} reference The text whose mean is taken.
 * @property {Steering[]} steer
 *
 * @typedef {object} Steering
 * @property {string} towards
 * @property {string} away
 * @property {number} layer
 * @property {number} strength
 * @property {number} first The position from which on it acts.
 *
 * @typedef {object} View What is looked at; never undone.
 * @property {"write" | "inside" | "whatif"} room
 * @property {number | null} token The place in the text that is looked at; null is the last.
 * @property {"none" | "surprisal" | "rank"} colour
 * @property {boolean} boundaries Whether tokens are told apart.
 *
 * @typedef {object} State
 * @property {Tree} tree
 * @property {Settings} settings
 * @property {Plan} plan
 * @property {View} view
 *
 * @typedef {object} Model What the server says of its model.
 * @property {string} name
 * @property {string} description
 * @property {{vocab_size: number, context_length: number, emb_dim: number, n_heads: number,
 *             n_layers: number}} config
 * @property {number} size Tokens of the vocabulary that have a text.
 * @property {number | null} end_of_text
 * @property {Record<string, number | null>} sampling The model's own defaults.
 * @property {Record<string, unknown>} facts
 * @property {string | null} unchangeable Why interventions are not possible; null if they are.
 * @property {{candidates: number, texts: number, patches: number}} limits
 */

export {};
