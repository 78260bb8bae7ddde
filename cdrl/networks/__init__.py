"""The two networks of CDRL: the energy network and the initializer."""

from cdrl.networks.energy import EnergyNet, FrozenEnergy
from cdrl.networks.initializer import Initializer

__all__ = ["EnergyNet", "FrozenEnergy", "Initializer"]
