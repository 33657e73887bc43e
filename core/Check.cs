using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace BlockServer.Core;

/// <summary>
/// Invariants, kept on in release: it is better to stop a volume or a store than to go on wrong. A failed one is a
/// bug of ours and throws <see cref="UnreachableException"/>; expected outcomes are values (<see cref="IoStatus"/>).
/// </summary>
public static class Check
{
    /// <summary>Throws when <paramref name="holds"/> is false, naming the claim as it stands in the source.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void That(
        [DoesNotReturnIf(false)] bool holds,
        [CallerArgumentExpression(nameof(holds))] string claim = "")
    {
        if (!holds) Broken(claim);
    }

    /// <summary>Reports a broken invariant that has no expression of its own.</summary>
    [DoesNotReturn]
    public static void Broken(string claim) => throw new UnreachableException("broken invariant: " + claim);
}
