namespace BlockServer.Blockd;

/// <summary>Who calls the admin API, and what he sees. Unchanged once made.</summary>
internal sealed class ApiCaller(Func<string, bool>? sees = null)
{
    /// <summary>Sees all.</summary>
    public static readonly ApiCaller Everything = new();

    /// <summary>This volume is his to see, or would be if it existed.</summary>
    public bool Sees(string volume) => sees is null || sees(volume);
}
