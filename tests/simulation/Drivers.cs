namespace BlockServer.Tests.Simulation;

/// <summary>The stores that can be simulated.</summary>
public static class Drivers
{
    /// <summary>What is simulated unless told otherwise.</summary>
    public static StoreDriver Default() => new LogStoreDriver();
}
