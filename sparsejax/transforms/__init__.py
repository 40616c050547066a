"""The methods: each a function that wraps an optimizer."""

from sparsejax.transforms.acdc import acdc, acdc_phases
from sparsejax.transforms.asp import asp, channel_permutation, permuted_mask
from sparsejax.transforms.ast import ast
from sparsejax.transforms.bdwp import bdwp
from sparsejax.transforms.cast import cast
from sparsejax.transforms.core import sparse_wrapper, static_args
from sparsejax.transforms.dsr import dsr
from sparsejax.transforms.dynamic import rigl, set_
from sparsejax.transforms.edge_popup import edge_popup
from sparsejax.transforms.gradual import gmp, one_shot
from sparsejax.transforms.granet import granet
from sparsejax.transforms.iss_p import iss_p
from sparsejax.transforms.itop import itop
from sparsejax.transforms.jackpots import jackpots
from sparsejax.transforms.lockstep import side_by_side
from sparsejax.transforms.masked_adam import adam_s, ast_adam
from sparsejax.transforms.mest import mest
from sparsejax.transforms.movement import movement
from sparsejax.transforms.obert import obert
from sparsejax.transforms.pq import pq_index
from sparsejax.transforms.progressive import mdgf, sdgf
from sparsejax.transforms.proposals import Adjusted, Leaf
from sparsejax.transforms.reparametrized import reparametrized
from sparsejax.transforms.rules import choose_best, drop_and_grow, keep_best, keep_best_globally, regrow
from sparsejax.transforms.sap import sap, sap_masks
from sparsejax.transforms.scl import scl
from sparsejax.transforms.snfs import snfs
from sparsejax.transforms.soft_threshold import str_
from sparsejax.transforms.spartan import spartan
from sparsejax.transforms.srigl import srigl
from sparsejax.transforms.static import static
from sparsejax.transforms.ste import dnw, sr_ste, ste
from sparsejax.transforms.straight_through import Latent, every_step, straight_through
from sparsejax.transforms.top_kast import top_kast

__all__ = [
    "Adjusted",
    "Latent",
    "Leaf",
    "acdc",
    "acdc_phases",
    "adam_s",
    "asp",
    "ast",
    "ast_adam",
    "bdwp",
    "cast",
    "channel_permutation",
    "choose_best",
    "dnw",
    "drop_and_grow",
    "dsr",
    "edge_popup",
    "every_step",
    "gmp",
    "granet",
    "iss_p",
    "itop",
    "jackpots",
    "keep_best",
    "keep_best_globally",
    "mdgf",
    "mest",
    "movement",
    "obert",
    "one_shot",
    "permuted_mask",
    "pq_index",
    "regrow",
    "reparametrized",
    "rigl",
    "sap",
    "sap_masks",
    "scl",
    "sdgf",
    "set_",
    "side_by_side",
    "snfs",
    "sparse_wrapper",
    "spartan",
    "sr_ste",
    "srigl",
    "static",
    "static_args",
    "ste",
    "str_",
    "straight_through",
    "top_kast",
]
