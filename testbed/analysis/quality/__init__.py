"""What is made of trainers learned off the network: how much of an exchange each arm recovers."""
