using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>What opening a store gave: the store, or why it refused.</summary>
public readonly record struct Opened(IStore? Store, string? Refusal);

/// <summary>How the simulation makes and opens the kind of store under test.</summary>
public abstract class StoreDriver
{
    /// <summary>Smallest medium that the simulation gives it.</summary>
    public abstract ulong MediumBytes { get; }

    /// <summary>Makes an empty store on the medium; null when done, else the reason.</summary>
    public abstract ValueTask<string?> FormatAsync(ILoop loop, IFile file);

    /// <summary>Opens it, recovering as needed.</summary>
    public abstract ValueTask<Opened> OpenAsync(ILoop loop, IFile file, Durability durability);
}
