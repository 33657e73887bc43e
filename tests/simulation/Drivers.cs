namespace BlockServer.Tests.Simulation;

/// <summary>The stores that can be simulated.</summary>
public static class Drivers
{
    /// <summary>What is simulated unless told otherwise.</summary>
    public static StoreDriver Default() =>
#if PRODUCT_STORE
        new StorageDriver();
#else
        new LogStoreDriver();
#endif

    /// <summary>The product's store with a rule broken, by its name.</summary>
    public static StoreDriver Broken(string rule) =>
#if PRODUCT_STORE
        new StorageDriver(Enum.Parse<BlockServer.Storage.BrokenRules>(rule));
#else
        new LogStoreDriver(Enum.Parse<LogStore.Breakage>(rule));
#endif
}
