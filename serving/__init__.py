"""The registry as HTTP: generative models through vLLM, everything else through predictors. Importing does nothing."""
