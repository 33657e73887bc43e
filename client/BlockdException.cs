namespace BlockServer.Client;

/// <summary>blockd refused, or could not be reached. The message is a sentence for an operator.</summary>
/// <param name="code">The stable code of the refusal (docs/openapi.json); <c>unreachable</c> when there was no answer.</param>
/// <param name="status">The HTTP status, or 0.</param>
/// <param name="message">The sentence.</param>
/// <param name="inner">What caused it, or null.</param>
public sealed class BlockdException(string code, int status, string message, Exception? inner = null) : Exception(message, inner)
{
    /// <summary>The code of a request that got no answer.</summary>
    public const string Unreachable = "unreachable";

    /// <summary>The stable code.</summary>
    public string Code { get; } = code;

    /// <summary>The HTTP status, or 0.</summary>
    public int Status { get; } = status;

    /// <summary>The same request may succeed later: the daemon is away or restarts, the disk does not serve at the
    /// moment, or streams that broke are not all gone yet.</summary>
    public bool IsTransient => Code is Unreachable or "disk-unavailable" or "metadata-unavailable" or "too-many-streams";
}
