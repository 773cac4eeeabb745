//! Every field has one owner: who may write what. Pure.
